#include "kernels/core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>

#include "kernels/core/error.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace rwkv {
namespace {

int threads_from_environment() {
#ifdef _OPENMP
  for (const char* name : {"RWKV_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* text = std::getenv(name);
    if (text == nullptr || *text == '\0') continue;
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    RWKV_CHECK(end != text && (*end == '\0' || *end == ',') && n >= 1 && n <= 4096, ConfigError,
               "environment variable ", name, ": found '", text,
               "', expected a number of threads from 1 to 4096");
    return static_cast<int>(n);
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, omp_get_num_procs());
#else
  return 1;
#endif
}

std::atomic<int> g_threads{0};

}  // namespace

int num_threads() {
  int n = g_threads.load(std::memory_order_relaxed);
  if (n == 0) {
    n = threads_from_environment();
    g_threads.store(n, std::memory_order_relaxed);
  }
  return n;
}

void set_num_threads(int n) {
  RWKV_CHECK(n >= 1 && n <= 4096, ConfigError, "number of threads: found ", n,
             ", expected 1 to 4096");
#ifdef _OPENMP
  g_threads.store(n, std::memory_order_relaxed);
#else
  g_threads.store(1, std::memory_order_relaxed);
#endif
}

namespace detail {

void parallel_for_impl(int64_t chunks, const void* ctx, void (*fn)(const void*, int64_t)) {
#ifdef _OPENMP
  const int threads = static_cast<int>(std::min<int64_t>(chunks, num_threads()));
  if (threads > 1 && !omp_in_parallel()) {
    std::exception_ptr first;
    int64_t first_chunk = chunks;
    std::mutex mutex;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t c = 0; c < chunks; ++c) {
      try {
        fn(ctx, c);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (c < first_chunk) {
          first_chunk = c;
          first = std::current_exception();
        }
      }
    }
    if (first) std::rethrow_exception(first);
    return;
  }
#endif
  for (int64_t c = 0; c < chunks; ++c) fn(ctx, c);
}

}  // namespace detail
}  // namespace rwkv
