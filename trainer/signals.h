#pragma once
/// SIGTERM, SIGINT and SIGHUP as a request to stop at the next good moment.

namespace rwkv {

/// While it lives, the first SIGTERM, SIGINT or SIGHUP (unless ignored: nohup) is only noted and a
/// second one ends the process at once (exit code 128 + signal); within 2 s of the first the same
/// signal counts as the same request, since launchers signal ranks directly and through their
/// parent. Writing beyond a file-size limit (SIGXFSZ) or into a closed pipe (SIGPIPE) becomes an
/// error of the write instead of a silent death. One at a time.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();  ///< restores what was there before
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// The signal that came, or 0.
  int received() const;
  const char* name() const;  ///< "SIGTERM", "SIGINT" or "SIGHUP"; "SIGTERM" if none came

 private:
  struct Saved;
  Saved* saved_;
};

/// For ranks that start, whose end by a signal the others must not take for a death: from here on
/// the first SIGTERM, SIGINT or SIGHUP (unless ignored) is held, until the next StopSignals has it
/// from its beginning, or take_held_signal() takes it. Further ones as with StopSignals. Stays
/// until the process ends.
void hold_signals();
/// The signal that is held: once, to one of those who ask. 0: none is. Any thread.
int take_held_signal();

}  // namespace rwkv
