#include "trainer/signals.h"

#include <signal.h>

#include <atomic>
#include <cstdint>
#include <ctime>

#include "data/io/interrupt.h"

namespace rwkv {
namespace {

// A signal handler can reach nothing but static storage.
std::atomic<int> g_received = 0;
std::atomic<int64_t> g_first_time = 0;  // of the signal that came first, ns; 0: none came
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

// One request may come twice: to all processes of a job, and once more from the parent that
// passes it on.
constexpr int64_t kSameRequest = 2'000'000'000;  // ns

int64_t now() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

void on_stop(int signal) {
  const int64_t time = now();
  int64_t first = 0;
  if (g_first_time.compare_exchange_strong(first, time)) {
    g_received = signal;
    return;
  }
  // 0: another handler has noted the time only, at this very moment.
  const int received = g_received;
  if ((received == 0 || received == signal) && time - first < kSameRequest) return;
  end_interrupted(signal);
}

}  // namespace

struct StopSignals::Saved {
  struct sigaction term, interrupt, hangup, file_size, pipe;
};

StopSignals::StopSignals() : saved_(new Saved) {
  g_received = 0;
  g_first_time = 0;
  struct sigaction stop = {};
  stop.sa_handler = on_stop;
  sigemptyset(&stop.sa_mask);
  stop.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &stop, &saved_->term);
  sigaction(SIGINT, &stop, &saved_->interrupt);
  sigaction(SIGHUP, hangup_ends() ? &stop : nullptr, &saved_->hangup);
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  sigemptyset(&ignore.sa_mask);
  sigaction(SIGXFSZ, &ignore, &saved_->file_size);
  sigaction(SIGPIPE, &ignore, &saved_->pipe);
}

StopSignals::~StopSignals() {
  sigaction(SIGTERM, &saved_->term, nullptr);
  sigaction(SIGINT, &saved_->interrupt, nullptr);
  sigaction(SIGHUP, &saved_->hangup, nullptr);
  sigaction(SIGXFSZ, &saved_->file_size, nullptr);
  sigaction(SIGPIPE, &saved_->pipe, nullptr);
  delete saved_;
}

int StopSignals::received() const {
  return g_received;
}

const char* StopSignals::name() const {
  const int received = g_received;
  return received == SIGINT ? "SIGINT" : received == SIGHUP ? "SIGHUP" : "SIGTERM";
}

}  // namespace rwkv
