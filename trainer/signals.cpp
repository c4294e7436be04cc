#include "trainer/signals.h"

#include <signal.h>

#include "data/io/interrupt.h"

namespace rwkv {
namespace {

// A signal handler can reach nothing but static storage.
volatile sig_atomic_t g_received = 0;

void on_stop(int signal) {
  if (g_received != 0) end_interrupted(signal);
  g_received = signal;
}

}  // namespace

struct StopSignals::Saved {
  struct sigaction term, interrupt, file_size, pipe;
};

StopSignals::StopSignals() : saved_(new Saved) {
  g_received = 0;
  struct sigaction stop = {};
  stop.sa_handler = on_stop;
  sigemptyset(&stop.sa_mask);
  stop.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &stop, &saved_->term);
  sigaction(SIGINT, &stop, &saved_->interrupt);
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  sigemptyset(&ignore.sa_mask);
  sigaction(SIGXFSZ, &ignore, &saved_->file_size);
  sigaction(SIGPIPE, &ignore, &saved_->pipe);
}

StopSignals::~StopSignals() {
  sigaction(SIGTERM, &saved_->term, nullptr);
  sigaction(SIGINT, &saved_->interrupt, nullptr);
  sigaction(SIGXFSZ, &saved_->file_size, nullptr);
  sigaction(SIGPIPE, &saved_->pipe, nullptr);
  delete saved_;
}

int StopSignals::received() const {
  return g_received;
}

const char* StopSignals::name() const {
  return g_received == SIGINT ? "SIGINT" : "SIGTERM";
}

}  // namespace rwkv
