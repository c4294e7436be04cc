#pragma once
/// What becomes of half-written files when SIGINT, SIGTERM or SIGHUP ends a program.

#include <string>

namespace rwkv {

/// A file, or a folder that was made for files, which goes when the program is interrupted while
/// this lives. Registers the path only: whoever owns one of these removes it in every other case.
/// Some dozen at a time are remembered; any further ones, and paths beyond 4095 bytes, are not.
class Unfinished {
 public:
  explicit Unfinished(const std::string& path);
  ~Unfinished();
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;

  /// From here on an interruption leaves the path alone: call it right before the file gets its
  /// final name. Does not return if the interruption came first.
  void keep();

 private:
  void release();
  int slot_ = -1;
};

/// Whether the end of a terminal or a connection (SIGHUP) is to end the program: not if the signal
/// was ignored when it started (nohup).
bool hangup_ends();

/// From here on SIGINT, SIGTERM and SIGHUP end the process as `end_interrupted` does; each stays
/// ignored if it was (nohup, background jobs). Writing beyond a file-size limit becomes an error of
/// the write instead of a silent death (SIGXFSZ).
void end_cleanly_on_signals(const std::string& program);

/// Removes what is unfinished, says so in one line on stderr and ends the process with 128 +
/// signal. May be called in a signal handler.
[[noreturn]] void end_interrupted(int signal);

}  // namespace rwkv
