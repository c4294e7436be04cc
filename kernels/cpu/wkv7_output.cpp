// Group norm, bonus and gate in one pass. Threads share chunks of rows; the work unit is one head
// (N <= 256 channels), whose temporaries stay in the L1 cache.

#include <cmath>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/ops/wkv7_output.h"

namespace rwkv::cpu {
namespace {
constexpr int64_t kMaxHead = kBlock;
}

void wkv7_output_forward(Context&, const OpCall& call) {
  const auto& attrs = call.attr<Wkv7OutputAttrs>();
  const int64_t n = attrs.head_size, c = call.in[0].last(), rows = call.in[0].rows();
  const float inv_n = 1.0f / static_cast<float>(n), eps = attrs.eps;
  parallel_for(rows, row_grain(rows), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin * c; o < end * c; o += n) {
      const int64_t channel = o % c;
      const float* __restrict y = call.in[0].f32() + o;
      const float* __restrict r = call.in[1].f32() + o;
      const float* __restrict k = call.in[2].f32() + o;
      const float* __restrict v = call.in[3].f32() + o;
      const float* __restrict gate = call.in[4].f32() + o;
      const float* __restrict weight = call.param[0].f32() + channel;
      const float* __restrict bias = call.param[1].f32() + channel;
      const float* __restrict r_k = call.param[2].f32() + channel;
      float* __restrict out = call.out[0].f32() + o;
      const float mean = lane_sum(n, [&](int64_t i) { return y[i]; }) * inv_n;
      const float var =
          lane_sum(n, [&](int64_t i) { return (y[i] - mean) * (y[i] - mean); }) * inv_n;
      const float rstd = 1.0f / std::sqrt(var + eps);
      const float beta = lane_sum(n, [&](int64_t i) { return r[i] * k[i] * r_k[i]; });
      for (int64_t i = 0; i < n; ++i)
        out[i] = ((y[i] - mean) * rstd * weight[i] + bias[i] + beta * v[i]) * gate[i];
      call.saved[0].f32()[o / n] = mean;
      call.saved[1].f32()[o / n] = rstd;
    }
  });
}

void wkv7_output_backward(Context& ctx, const OpCall& call) {
  const int64_t n = call.attr<Wkv7OutputAttrs>().head_size;
  const int64_t c = call.in[0].last(), rows = call.in[0].rows(), grain = row_grain(rows);
  const float inv_n = 1.0f / static_cast<float>(n);
  auto* partials = reinterpret_cast<float*>(ctx.workspace(partial_bytes(rows, 3 * c)));
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    float* sums = partials + begin / grain * 3 * c;
    std::fill(sums, sums + 3 * c, 0.0f);
    for (int64_t o = begin * c; o < end * c; o += n) {
      const int64_t channel = o % c;
      const float* __restrict y = call.in[0].f32() + o;
      const float* __restrict r = call.in[1].f32() + o;
      const float* __restrict k = call.in[2].f32() + o;
      const float* __restrict v = call.in[3].f32() + o;
      const float* __restrict gate = call.in[4].f32() + o;
      const float* __restrict weight = call.param[0].f32() + channel;
      const float* __restrict bias = call.param[1].f32() + channel;
      const float* __restrict r_k = call.param[2].f32() + channel;
      const float* __restrict dout = call.dout[0].f32() + o;
      const float mean = call.saved[0].f32()[o / n], rstd = call.saved[1].f32()[o / n];
      float* __restrict sum_w = sums + channel;
      float* __restrict sum_b = sums + c + channel;
      float* __restrict sum_rk = sums + 2 * c + channel;

      const float beta = lane_sum(n, [&](int64_t i) { return r[i] * k[i] * r_k[i]; });
      float x[kMaxHead], g[kMaxHead], d[kMaxHead];  // normalised y; d * weight; d(o + beta v)
      float dgate[kMaxHead], dv[kMaxHead];
      for (int64_t i = 0; i < n; ++i) {
        x[i] = (y[i] - mean) * rstd;
        d[i] = dout[i] * gate[i];
        g[i] = d[i] * weight[i];
        dgate[i] = dout[i] * (x[i] * weight[i] + bias[i] + beta * v[i]);
        dv[i] = beta * d[i];
        sum_w[i] += d[i] * x[i];
        sum_b[i] += d[i];
      }
      emit(at(call.din[4], o), dgate, n, call.din_mode[4]);
      emit(at(call.din[3], o), dv, n, call.din_mode[3]);

      const float dbeta = lane_sum(n, [&](int64_t i) { return d[i] * v[i]; });
      const float g_mean = lane_sum(n, [&](int64_t i) { return g[i]; }) * inv_n;
      const float gx_mean = lane_sum(n, [&](int64_t i) { return g[i] * x[i]; }) * inv_n;
      float dy[kMaxHead], dr[kMaxHead], dk[kMaxHead];
      for (int64_t i = 0; i < n; ++i) {
        dy[i] = rstd * (g[i] - g_mean - x[i] * gx_mean);
        dr[i] = dbeta * k[i] * r_k[i];
        dk[i] = dbeta * r[i] * r_k[i];
        sum_rk[i] += dbeta * r[i] * k[i];
      }
      emit(at(call.din[0], o), dy, n, call.din_mode[0]);
      emit(at(call.din[1], o), dr, n, call.din_mode[1]);
      emit(at(call.din[2], o), dk, n, call.din_mode[2]);
    }
  });
  for (size_t p = 0; p < 3; ++p)
    reduce_partials(partials + static_cast<int64_t>(p) * c, row_chunks(rows), 3 * c, c,
                    at(call.dparam[p], 0), call.dparam_mode[p]);
}

}  // namespace rwkv::cpu
