#include "inference/server/connection_threads.h"

#include <exception>
#include <iostream>
#include <system_error>
#include <utility>

namespace rwkv {
namespace {

thread_local bool refusing_thread = false;

}  // namespace

bool ConnectionThreads::is_refusing() {
  return refusing_thread;
}

int64_t ConnectionThreads::open() const {
  const std::lock_guard lock(mutex_);
  return open_;
}

void ConnectionThreads::enqueue(std::function<void()> connection) {
  const std::lock_guard lock(mutex_);
  const bool refuse = open_ >= limit_;
  Pool& pool = refuse ? refusals_ : serving_;
  // A refused connection is not counted: it keeps nobody out.
  if (!refuse) ++open_;
  pool.jobs.push_back(std::move(connection));
  const auto waiting = static_cast<int64_t>(pool.jobs.size());
  if (waiting > pool.idle && pool.threads < (refuse ? refusing_ : limit_)) {
    try {
      threads_.emplace_back([this, &pool, refuse] { work(pool, refuse); });
      ++pool.threads;
    } catch (const std::system_error&) {
      // The machine gives no more threads: the connection waits for one, or is closed if there is
      // none.
      if (pool.threads == 0) {
        pool.jobs.pop_back();
        if (!refuse) --open_;
      }
    }
  }
  pool.wake.notify_one();
}

void ConnectionThreads::work(Pool& pool, bool refusing) {
  refusing_thread = refusing;
  std::unique_lock lock(mutex_);
  while (true) {
    ++pool.idle;
    pool.wake.wait(lock, [&] { return stopping_ || !pool.jobs.empty(); });
    --pool.idle;
    if (pool.jobs.empty()) return;
    const auto job = std::move(pool.jobs.front());
    pool.jobs.pop_front();
    lock.unlock();
    try {
      job();
    } catch (const std::exception& e) {  // costs this connection, not the others
      std::cerr << "rwkv-serve: a connection ended: " << e.what() << '\n';
    }
    lock.lock();
    if (!refusing) --open_;
  }
}

void ConnectionThreads::shutdown() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  serving_.wake.notify_all();
  refusals_.wake.notify_all();
  for (std::thread& t : threads_) t.join();
}

}  // namespace rwkv
