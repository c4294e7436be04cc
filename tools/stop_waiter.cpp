#include "tools/stop_waiter.h"

#include <pthread.h>
#include <signal.h>

#include <utility>

#include "data/io/interrupt.h"

namespace rwkv {
namespace {

sigset_t stop_set() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (hangup_ends()) sigaddset(&signals, SIGHUP);
  return signals;
}

}  // namespace

StopWaiter::StopWaiter() {
  const sigset_t signals = stop_set();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  waiter_ = std::thread([this] {
    started_.count_down();
    wait();
  });
  // Files are tried in a fork of this process, which must not meet a thread that is just starting
  // and has memory's locks (AddressSanitizer's are not released in a child).
  started_.wait();
}

StopWaiter::~StopWaiter() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  pthread_kill(waiter_.native_handle(), SIGTERM);
  waiter_.join();
}

void StopWaiter::wait() {
  const sigset_t signals = stop_set();
  while (true) {
    int signal = 0;
    sigwait(&signals, &signal);
    std::unique_lock lock(mutex_);
    if (over_) return;
    if (stopping_) continue;  // is at it
    if (!stop_) {
      pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
      ::raise(signal);
    }
    const auto stop = std::exchange(stop_, nullptr);
    stopping_ = true;
    lock.unlock();
    stop();
    lock.lock();
    stopping_ = false;
    ended_.notify_all();
  }
}

void StopWaiter::run(const std::function<void()>& body, std::function<void()> stop) {
  {
    const std::lock_guard lock(mutex_);
    stop_ = std::move(stop);
  }
  const auto leave = [this] {
    std::unique_lock lock(mutex_);
    stop_ = nullptr;
    ended_.wait(lock, [&] { return !stopping_; });
  };
  try {
    body();
  } catch (...) {
    leave();
    throw;
  }
  leave();
}

}  // namespace rwkv
