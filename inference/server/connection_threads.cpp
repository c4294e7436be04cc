#include "inference/server/connection_threads.h"

#include <exception>
#include <iostream>
#include <memory>
#include <utility>

namespace rwkv {
namespace {

thread_local bool refusing_thread = false;

/// The library matches headers of up to 8 KiB by regular expressions that recurse for every
/// character: that took more than 4 MiB, and the default is 2 MiB where stacks are unlimited. Only
/// what is used takes memory.
constexpr size_t kStack = size_t{32} << 20;

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
    if (add_thread(pool, refuse)) {
      ++pool.threads;
    } else if (pool.threads == 0) {
      // The connection would wait for a thread, but there is none.
      pool.jobs.pop_back();
      if (!refuse) --open_;
    }
  }
  pool.wake.notify_one();
}

struct ConnectionThreads::Start {
  ConnectionThreads* self;
  Pool* pool;
  bool refusing;
};

bool ConnectionThreads::add_thread(Pool& pool, bool refusing) {
  auto start = std::make_unique<Start>(Start{this, &pool, refusing});
  const auto run = [](void* given) -> void* {
    const std::unique_ptr<Start> s(static_cast<Start*>(given));
    s->self->work(*s->pool, s->refusing);
    return nullptr;
  };
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStack);
  pthread_t thread{};
  const bool made = pthread_create(&thread, &attributes, run, start.get()) == 0;
  pthread_attr_destroy(&attributes);
  if (!made) return false;
  start.release();
  threads_.push_back(thread);
  return true;
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
  for (const pthread_t t : threads_) pthread_join(t, nullptr);
}

}  // namespace rwkv
