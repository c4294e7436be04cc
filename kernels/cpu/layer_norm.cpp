// Threads share chunks of rows; a row is read from memory once and stays in the L1 cache for its
// three passes (mean, squared distance, result). Limited by memory bandwidth.

#include <cmath>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/ops/layer_norm.h"

namespace rwkv::cpu {

void layer_norm_forward(Context&, const OpCall& call) {
  const float* x = call.in[0].f32();
  const float* __restrict weight = call.param[0].f32();
  const float* __restrict bias = call.param[1].f32();
  float* y = call.out[0].f32();
  float* mean_out = call.saved[0].f32();
  float* rstd_out = call.saved[1].f32();
  const int64_t rows = call.in[0].rows(), c = call.in[0].last();
  const float eps = call.attr<LayerNormAttrs>().eps, inv_c = 1.0f / static_cast<float>(c);
  parallel_for(rows, row_grain(rows), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* __restrict xr = x + r * c;
      float* __restrict yr = y + r * c;
      const float mean = lane_sum(c, [&](int64_t i) { return xr[i]; }) * inv_c;
      const float var =
          lane_sum(c, [&](int64_t i) { return (xr[i] - mean) * (xr[i] - mean); }) * inv_c;
      const float rstd = 1.0f / std::sqrt(var + eps);
      for (int64_t i = 0; i < c; ++i) yr[i] = (xr[i] - mean) * rstd * weight[i] + bias[i];
      mean_out[r] = mean;
      rstd_out[r] = rstd;
    }
  });
}

void layer_norm_backward(Context& ctx, const OpCall& call) {
  const float* x = call.in[0].f32();
  const float* __restrict weight = call.param[0].f32();
  const float* mean_in = call.saved[0].f32();
  const float* rstd_in = call.saved[1].f32();
  const float* dy = call.dout[0].f32();
  const int64_t rows = call.in[0].rows(), c = call.in[0].last(), grain = row_grain(rows);
  const float inv_c = 1.0f / static_cast<float>(c);
  const Accum mode = call.din_mode[0];
  float* dx = mode == Accum::kSkip ? nullptr : call.din[0].f32();
  auto* partials = reinterpret_cast<float*>(ctx.workspace(partial_bytes(rows, 2 * c)));
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    float* __restrict dw = partials + begin / grain * 2 * c;
    float* __restrict db = dw + c;
    std::fill(dw, dw + 2 * c, 0.0f);
    for (int64_t r = begin; r < end; ++r) {
      const float* __restrict xr = x + r * c;
      const float* __restrict dyr = dy + r * c;
      const float mean = mean_in[r], rstd = rstd_in[r];
      for (int64_t i = 0; i < c; ++i) {
        dw[i] += dyr[i] * ((xr[i] - mean) * rstd);
        db[i] += dyr[i];
      }
      if (mode == Accum::kSkip) continue;
      const float g_mean = lane_sum(c, [&](int64_t i) { return dyr[i] * weight[i]; }) * inv_c;
      const float gx_mean =
          lane_sum(c, [&](int64_t i) { return dyr[i] * weight[i] * ((xr[i] - mean) * rstd); }) *
          inv_c;
      for (int64_t i0 = 0; i0 < c; i0 += kBlock) {
        const int64_t n = std::min(kBlock, c - i0);
        float out[kBlock];
        for (int64_t i = 0; i < n; ++i)
          out[i] =
              rstd * (dyr[i0 + i] * weight[i0 + i] - g_mean - (xr[i0 + i] - mean) * rstd * gx_mean);
        emit(dx + r * c + i0, out, n, mode);
      }
    }
  });
  const int64_t chunks = row_chunks(rows);
  reduce_partials(partials, chunks, 2 * c, c, at(call.dparam[0], 0), call.dparam_mode[0]);
  reduce_partials(partials + c, chunks, 2 * c, c, at(call.dparam[1], 0), call.dparam_mode[1]);
}

}  // namespace rwkv::cpu
