#pragma once
/// SIGTERM, SIGINT and SIGHUP (unless ignored) of a program that has something to end before it
/// goes.

#include <condition_variable>
#include <functional>
#include <latch>
#include <mutex>
#include <thread>

namespace rwkv {

/// Make it before any other thread: those that are made afterwards leave the signals to it. Outside
/// of run() a signal ends the program, as it would without this.
class StopWaiter {
 public:
  StopWaiter();
  ~StopWaiter();
  StopWaiter(const StopWaiter&) = delete;
  StopWaiter& operator=(const StopWaiter&) = delete;

  /// Calls body(). The first signal meanwhile calls stop() in another thread, once; returns when
  /// both have.
  void run(const std::function<void()>& body, std::function<void()> stop);

 private:
  void wait();

  std::mutex mutex_;
  std::condition_variable ended_;
  std::function<void()> stop_;  ///< empty outside of run()
  bool stopping_ = false, over_ = false;
  std::latch started_{1};
  std::thread waiter_;
};

}  // namespace rwkv
