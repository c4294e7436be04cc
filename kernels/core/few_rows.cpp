// Which kernels a processor runs, those for any processor, and the work of threads.

#include "kernels/core/few_rows.h"

#include <algorithm>

#include "kernels/core/few_rows_impl.h"
#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

struct Plain {
  static constexpr int64_t kLanes = 8;
  static constexpr int kRegisters = 16;
  struct Reg {
    float lane[kLanes];
  };
  template <class F>
  static Reg each(const F& f) {
    Reg r;
    for (int l = 0; l < kLanes; ++l) r.lane[l] = f(l);
    return r;
  }

  static Reg zero() { return {}; }
  static Reg set(float x) {
    return each([&](int) { return x; });
  }
  template <class T>
  static Reg widen(const T* p) {
    return each([&](int l) { return weight(p[l]); });
  }
  static Reg load(const float* p) { return widen(p); }
  static void store(float* p, const Reg& x) { std::memcpy(p, x.lane, sizeof x.lane); }
  static Reg add(const Reg& x, const Reg& y) {
    return each([&](int l) { return x.lane[l] + y.lane[l]; });
  }
  static Reg multiply_add(const Reg& a, const Reg& b, const Reg& c) {
    return each([&](int l) { return a.lane[l] * b.lane[l] + c.lane[l]; });
  }
  static float sum(const Reg& x, const Reg& y) {
    Reg s = add(x, y);
    for (int w = kLanes / 2; w > 0; w /= 2)
      for (int l = 0; l < w; ++l) s.lane[l] += s.lane[l + w];
    return s.lane[0];
  }
};

struct Available {
  FewRowsKernels list[3];
  size_t count = 0;
};

Available available() {
  Available a;
#if RWKV_X86_KERNELS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
    a.list[a.count++] = detail::kFewRowsAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    a.list[a.count++] = detail::kFewRowsAvx2;
#endif
  a.list[a.count++] = detail::kFewRowsPlain;
  return a;
}

}  // namespace

namespace detail {
const FewRowsKernels kFewRowsPlain{"plain", any<Plain, true>, any<Plain, false>};
}  // namespace detail

std::span<const FewRowsKernels> few_rows_kernels() {
  static const Available kAvailable = available();
  return {kAvailable.list, kAvailable.count};
}

void few_rows(const FewRowsCall& call, bool trans_b) {
  // Below that a second thread starts later than the first is done.
  constexpr int64_t kBytesPerThread = 16384;
  const FewRowsKernels& kernels = few_rows_kernels()[0];
  const int64_t bytes = (trans_b ? call.n : call.k) * call.row_bytes;
  parallel_spans(call.n, trans_b ? 2 : kFewRowsColumns,
                 std::max<int64_t>(1, bytes / kBytesPerThread), [&](int64_t begin, int64_t end) {
                   (trans_b ? kernels.dots : kernels.updates)(call, begin, end);
                 });
}

}  // namespace rwkv
