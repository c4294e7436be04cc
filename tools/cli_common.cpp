#include "tools/cli_common.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>

#include "data/io/hdf5_shards.h"
#include "data/io/interrupt.h"
#include "data/io/tensor_file.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/trace.h"
#include "trainer/checkpoint.h"

namespace rwkv {
namespace {

/// Line ends with the blanks around them become one blank. Messages quote files: what would
/// command a terminal is not shown, and no more than a few lines of it.
std::string one_line(std::string_view text) {
  std::string line;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    line += text.substr(at, end - at);
    at = std::min(text.find_first_not_of(" \n\t", end), text.size());
    if (end == text.size() || at == text.size()) break;
    while (line.ends_with(' ')) line.pop_back();
    line += ' ';
  }
  constexpr size_t kMost = 4000;
  if (line.size() > kMost) line = str(line.substr(0, kMost), "... (", line.size(), " bytes)");
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = '?';
  return line;
}

/// What to say of a command that does not exist: the parser's message does not name it.
std::string unknown_command(const CLI::App& app) {
  if (app.get_require_subcommand_min() == 0 || !app.get_subcommands().empty()) return "";
  const std::vector<std::string> words = app.remaining();
  if (words.empty() || words[0].starts_with('-')) return "";
  std::string known;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    known += (known.empty() ? "" : ", ") + sub->get_name();
  return str("there is no command '", words[0], "'; there are ", known);
}

}  // namespace

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const auto fail = [&](const char* message, int code) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: error: %s\n", app.get_name().c_str(), one_line(message).c_str());
    return code;
  };
  const auto finish = [&](int code) {
    return std::fflush(stdout) == 0 && std::ferror(stdout) == 0
               ? code
               : fail("writing to standard output failed", 3);
  };
  end_cleanly_on_signals(app.get_name());
  app.set_version_flag("--version", app.get_name() + " " + version_text());
  try {
    app.parse(argc, argv);
    return finish(body());
  } catch (const CLI::Success& e) {  // --help, --version
    return finish(app.exit(e));
  } catch (const CLI::ParseError& e) {
    const std::string unknown = unknown_command(app);
    return fail(((unknown.empty() ? e.what() : unknown) + "; try --help").c_str(), 2);
  } catch (const Error& e) {
    return fail(e.what(), e.exit_code());
  } catch (const std::bad_alloc&) {
    return fail("out of memory", 4);
  } catch (const std::exception& e) {
    return fail(e.what(), 1);
  }
}

void add_threads_flag(CLI::App& app, int& threads) {
  app.add_option("--threads", threads, "threads to use (0: RWKV_NUM_THREADS, or all cores)")
      ->check(CLI::Range(0, 4096));
}

void use_threads(int threads) {
  if (threads > 0) set_num_threads(threads);
}

ProgressLine::ProgressLine(std::string what) : what_(std::move(what)), start_(now_seconds()) {}

ProgressLine::~ProgressLine() {
  if (shown_) std::fprintf(stderr, "\r\033[K");
}

void ProgressLine::operator()(int64_t done, int64_t total) {
  constexpr double kInterval = 0.2;  // seconds between updates
  const double now = now_seconds();
  if (now - last_ < kInterval || isatty(STDERR_FILENO) == 0) return;
  last_ = now;
  shown_ = true;
  const double rate = static_cast<double>(done) / (now - start_);
  std::fprintf(stderr, "\r\033[K%s: %lld of %lld, %.0f/s, %.0f s left", what_.c_str(),
               static_cast<long long>(done), static_cast<long long>(total), rate,
               rate > 0 ? static_cast<double>(total - done) / rate : 0.0);
  std::fflush(stderr);
}

std::string resolve_model(const std::string& path) {
  std::error_code ec;
  if (!std::filesystem::is_directory(path, ec) || is_safetensors_folder(path) ||
      is_shard_folder(path))
    return path;
  const std::vector<CheckpointFile> found = list_checkpoints(path);
  RWKV_CHECK(
      !found.empty(), ConfigError, "opening ", path,
      ": there is no checkpoint in this folder and no model.safetensors; expected a run folder "
      "of rwkv-train or a transformers folder");
  for (auto file = found.rbegin(); file != found.rend(); ++file) {
    try {
      check_checkpoint_files(file->path);
      return file->path;
    } catch (const IoError& e) {
      std::fprintf(stderr, "skipping a damaged checkpoint: %s\n", e.what());
    }
  }
  throw IoError(str("opening ", path, ": none of its ", found.size(), " checkpoints is whole"));
}

std::string read_stdin() {
  std::string text;
  char buffer[65536];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) text.append(buffer, n);
  RWKV_CHECK(std::ferror(stdin) == 0, IoError, "reading standard input failed");
  return text;
}

}  // namespace rwkv
