#include "tools/cli_common.h"

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>

#include "data/io/seal.h"
#include "data/io/tensor_file.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/trace.h"
#include "trainer/checkpoint.h"

namespace rwkv {

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const auto fail = [&](const char* message, int code) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: error: %s\n", app.get_name().c_str(), message);
    return code;
  };
  try {
    app.parse(argc, argv);
    const int code = body();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      return fail("writing to standard output failed", 3);
    return code;
  } catch (const CLI::Success& e) {  // --help, --version
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    return fail((std::string(e.what()) + "; try --help").c_str(), 2);
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
  if (!std::filesystem::is_directory(path, ec) || is_safetensors_folder(path)) return path;
  const std::vector<CheckpointFile> found = list_checkpoints(path);
  RWKV_CHECK(!found.empty(), ConfigError, "opening ", path,
             ": there is no checkpoint in this folder; expected a run folder of rwkv-train");
  for (auto file = found.rbegin(); file != found.rend(); ++file) {
    try {
      check_seal(file->path, "");
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
