#pragma once
/// What the programs share: the way from command line to exit code, and a progress line.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>

namespace rwkv {

/// Adds --version, parses the command line, runs the body and turns what is thrown into one line on
/// stderr, "PROGRAM: error: MESSAGE", and an exit code: 0 done (also after --help), 2 usage or
/// config, 3 data or file, 4 device or memory, 5 non-finite numbers, 1 a defect of ours. SIGINT and
/// SIGTERM end the program with 130 and 143 and leave no half-written files (data/io/interrupt.h).
int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body);

/// "0.1.0, commit 1a2b3c4": of the sources when they were built.
std::string version_text();

/// Of --vocab, where a model is read.
inline constexpr const char* kVocabHelp =
    "vocabulary file, for models that carry none; bytes: the model reads bytes";

/// For ->check(): a number of at least `least`.
CLI::Validator at_least(int64_t least);

/// "--threads N": 0 leaves the choice to the environment and the machine.
void add_threads_flag(CLI::App& app, int& threads);
/// Applies it. Throws ConfigError.
void use_threads(int threads);

/// One line on stderr that is rewritten in place, with rate and time left; nothing at all unless
/// stderr is a terminal. Use as a progress callback.
class ProgressLine {
 public:
  explicit ProgressLine(std::string what);  ///< "lambada", ...
  ~ProgressLine();                          ///< clears the line
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  void operator()(int64_t done, int64_t total);

 private:
  std::string what_;
  double start_, last_ = 0;
  bool shown_ = false;
};

/// newest_model() of trainer/checkpoint.h, with a line on stderr for every damaged checkpoint.
std::string resolve_model(const std::string& path);

/// Everything on standard input. Throws IoError.
std::string read_stdin();

}  // namespace rwkv
