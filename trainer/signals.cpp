#include "trainer/signals.h"

#include <signal.h>

#include <atomic>
#include <cstdint>
#include <ctime>

#include "data/io/interrupt.h"

namespace rwkv {
namespace {

// A signal handler can reach nothing but static storage.
std::atomic<int> g_received = 0;  // by StopSignals
std::atomic<int> g_held = 0;
std::atomic<int> g_first = 0;           // the signal that came first
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

/// False for a repeat; does not return for another request.
bool is_first(int signal) {
  const int64_t time = now();
  int64_t first_time = 0;
  if (g_first_time.compare_exchange_strong(first_time, time)) {
    g_first = signal;
    return true;
  }
  // 0: another handler has noted the time only, at this very moment.
  const int first = g_first;
  if ((first == 0 || first == signal) && time - first_time < kSameRequest) return false;
  end_interrupted(signal);
}

void on_stop(int signal) {
  if (is_first(signal)) g_received = signal;
}

void on_held(int signal) {
  if (is_first(signal)) g_held = signal;
}

struct sigaction handled_by(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  return action;
}

}  // namespace

struct StopSignals::Saved {
  struct sigaction term, interrupt, hangup, file_size, pipe;
};

StopSignals::StopSignals() : saved_(new Saved) {
  g_received = take_held_signal();
  if (g_received == 0) g_first = 0, g_first_time = 0;
  const struct sigaction stop = handled_by(on_stop);
  sigaction(SIGTERM, &stop, &saved_->term);
  sigaction(SIGINT, &stop, &saved_->interrupt);
  sigaction(SIGHUP, hangup_ends() ? &stop : nullptr, &saved_->hangup);
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  sigemptyset(&ignore.sa_mask);
  sigaction(SIGXFSZ, &ignore, &saved_->file_size);
  sigaction(SIGPIPE, &ignore, &saved_->pipe);
  if (const int late = take_held_signal(); late != 0) g_received = late;  // came in between
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

void hold_signals() {
  const struct sigaction hold = handled_by(on_held);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP})
    if (signal != SIGHUP || hangup_ends()) sigaction(signal, &hold, nullptr);
}

int take_held_signal() {
  return g_held.exchange(0);
}

}  // namespace rwkv
