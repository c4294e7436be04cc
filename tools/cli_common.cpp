#include "tools/cli_common.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

#include "data/io/interrupt.h"
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

/// Numbers that do not fit: the parser takes the largest there is instead, and 2^64 - 1 for -1
/// where a number has no sign.
void check_numbers(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();
    const bool natural = type.starts_with("UINT");
    if (!natural && !type.starts_with("INT")) continue;
    for (const std::string& text : option->results()) {
      errno = 0;
      if (natural)
        std::strtoull(text.c_str(), nullptr, 0);
      else
        std::strtoll(text.c_str(), nullptr, 0);
      RWKV_CHECK(errno != ERANGE && !(natural && text.starts_with('-')), ConfigError,
                 option->get_name(), ": found ", text, ", expected a number from ",
                 natural ? "0" : "-2^63", " to 2^6", natural ? "4" : "3", " - 1");
    }
  }
  for (const CLI::App* sub : app.get_subcommands()) check_numbers(*sub);
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
    check_numbers(app);
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

CLI::Validator at_least(int64_t least) {
  return CLI::Validator(
      [least](std::string& text) {
        char* end = nullptr;
        const double number = std::strtod(text.c_str(), &end);
        const bool good = end != text.c_str() && *end == '\0' && number >= double(least);
        return good ? std::string() : str("found ", text, ", expected at least ", least);
      },
      "");
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
  return newest_model(path, [](const std::string& why) {
    std::fprintf(stderr, "skipping a damaged checkpoint: %s\n", why.c_str());
  });
}

std::string read_stdin() {
  std::string text;
  char buffer[65536];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) text.append(buffer, n);
  RWKV_CHECK(std::ferror(stdin) == 0, IoError, "reading standard input failed");
  return text;
}

}  // namespace rwkv
