#include "kernels/cpu/rows.h"

namespace rwkv::cpu {

void reduce_partials(const float* partials, int64_t chunks, int64_t stride, int64_t n, float* dst,
                     Accum mode) {
  if (mode == Accum::kSkip) return;
  parallel_for(n, kBlock, [&](int64_t begin, int64_t end) {
    double acc[kBlock] = {};
    const int64_t width = end - begin;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float* row = partials + chunk * stride + begin;
      for (int64_t c = 0; c < width; ++c) acc[c] += static_cast<double>(row[c]);
    }
    float* out = dst + begin;
    if (mode == Accum::kAdd)
      for (int64_t c = 0; c < width; ++c)
        out[c] = static_cast<float>(static_cast<double>(out[c]) + acc[c]);
    else
      for (int64_t c = 0; c < width; ++c) out[c] = static_cast<float>(acc[c]);
  });
}

void column_sums(const float* x, int64_t rows, int64_t n, float* partials, float* dst, Accum mode) {
  if (mode == Accum::kSkip) return;
  const int64_t grain = row_grain(rows);
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    float* __restrict sum = partials + begin / grain * n;
    std::memcpy(sum, x + begin * n, static_cast<size_t>(n) * sizeof(float));
    for (int64_t r = begin + 1; r < end; ++r) {
      const float* __restrict row = x + r * n;
      for (int64_t c = 0; c < n; ++c) sum[c] += row[c];
    }
  });
  reduce_partials(partials, row_chunks(rows), n, n, dst, mode);
}

}  // namespace rwkv::cpu
