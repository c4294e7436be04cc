#pragma once
/// Shared-memory parallel loops (OpenMP) whose results never depend on the number of threads.
///
/// The rule: work is cut into chunks whose bounds depend on the sizes alone; threads pick chunks;
/// each output element belongs to exactly one chunk; reductions combine per-chunk partial results
/// in chunk order.

#include <cstdint>
#include <functional>
#include <type_traits>

namespace rwkv {

/// Number of threads that parallel loops use: the last `set_num_threads`, else RWKV_NUM_THREADS,
/// else OMP_NUM_THREADS, else the cores this process may run on. 1 in builds without OpenMP.
int num_threads();
/// n >= 1; throws ConfigError otherwise. Not to be called from inside a parallel loop.
void set_num_threads(int n);

namespace detail {
void parallel_for_impl(int64_t chunks, const void* ctx, void (*fn)(const void*, int64_t chunk));
}

/// Calls fn(begin, end) for consecutive pieces of [0, n) of at most `grain` items, in parallel.
/// Exceptions leave the loop (the first by chunk order). Nested calls run serially.
template <class Fn>
void parallel_for(int64_t n, int64_t grain, const Fn& fn) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  const int64_t chunks = (n + grain - 1) / grain;
  if (chunks == 1) {
    fn(int64_t{0}, n);
    return;
  }
  struct Ctx {
    const Fn* fn;
    int64_t n, grain;
  } ctx{&fn, n, grain};
  detail::parallel_for_impl(chunks, &ctx, [](const void* p, int64_t chunk) {
    const auto& c = *static_cast<const Ctx*>(p);
    const int64_t begin = chunk * c.grain;
    const int64_t end = begin + c.grain < c.n ? begin + c.grain : c.n;
    (*c.fn)(begin, end);
  });
}

/// Calls fn(begin, end) for nearly equal consecutive pieces of [0, n), cut at multiples of `align`:
/// one per thread, but at most `most`. For long reads, which are fastest without a break. The
/// bounds depend on the number of threads: nothing that fn computes may depend on them.
template <class Fn>
void parallel_spans(int64_t n, int64_t align, int64_t most, const Fn& fn) {
  const int64_t units = (n + align - 1) / align;
  int64_t count = num_threads() < most ? num_threads() : most;
  if (count > units) count = units;
  if (count < 1) count = 1;
  parallel_for(count, 1, [&](int64_t t, int64_t) {
    const int64_t begin = t * units / count * align, end = (t + 1) * units / count * align;
    fn(begin, end < n ? end : n);
  });
}

}  // namespace rwkv
