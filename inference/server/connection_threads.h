#pragma once
/// Threads for connections. A server with a thread per stream needs as many as connections; one
/// connection more would wait for another to end, so a few threads tell those that they are too
/// many.

#include <httplib.h>
#include <pthread.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

namespace rwkv {

class ConnectionThreads : public httplib::TaskQueue {
 public:
  /// Threads are made when they are needed. `refusing` of them serve what comes beyond `limit`.
  ConnectionThreads(int64_t limit, int64_t refusing = 4) : limit_(limit), refusing_(refusing) {}
  void enqueue(std::function<void()> connection) override;
  void shutdown() override;
  int64_t open() const;

  /// The calling thread serves a connection beyond the limit.
  static bool is_refusing();

 private:
  struct Pool {
    std::deque<std::function<void()>> jobs;
    int64_t threads = 0, idle = 0;
    std::condition_variable wake;
  };
  struct Start;
  /// False if the machine gives no more threads.
  bool add_thread(Pool& pool, bool refusing);
  void work(Pool& pool, bool refusing);

  const int64_t limit_, refusing_;
  mutable std::mutex mutex_;
  Pool serving_, refusals_;
  int64_t open_ = 0;
  bool stopping_ = false;
  std::vector<pthread_t> threads_;
};

}  // namespace rwkv
