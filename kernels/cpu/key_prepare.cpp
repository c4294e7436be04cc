// Threads share chunks of rows; the work unit is one head (N <= 256 channels), whose temporaries
// stay in the L1 cache. The backward recomputes norm and sigmoid from the inputs, which costs less
// than reading them back.

#include <cmath>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/rows.h"
#include "kernels/ops/key_prepare.h"

namespace rwkv::cpu {
namespace {
constexpr float kNormFloor = 1e-12f;
constexpr int64_t kMaxHead = kBlock;
}  // namespace

void key_prepare_forward(Context&, const OpCall& call) {
  const int64_t n = call.attr<KeyPrepareAttrs>().head_size;
  const int64_t c = call.in[0].last(), rows = call.in[0].rows();
  parallel_for(rows, row_grain(rows), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin * c; o < end * c; o += n) {
      const int64_t channel = o % c;
      const float* __restrict k0 = call.in[0].f32() + o;
      const float* __restrict logit = call.in[1].f32() + o;
      const float* __restrict k_k = call.param[0].f32() + channel;
      const float* __restrict k_a = call.param[1].f32() + channel;
      float* __restrict k = call.out[0].f32() + o;
      float* __restrict a = call.out[1].f32() + o;
      float* __restrict b = call.out[2].f32() + o;
      const float norm = std::sqrt(lane_sum(n, [&](int64_t i) {
        const float u = k0[i] * k_k[i];
        return u * u;
      }));
      const float scale = 1.0f / (norm < kNormFloor ? kNormFloor : norm);
      for (int64_t i = 0; i < n; ++i) {
        const Logistic iclr = logistic(logit[i]);
        const float z = k0[i] * k_k[i] * scale;
        k[i] = k0[i] * (1.0f - iclr.complement * k_a[i]);
        a[i] = -z;
        b[i] = z * iclr.value;
      }
    }
  });
}

void key_prepare_backward(Context& ctx, const OpCall& call) {
  const int64_t n = call.attr<KeyPrepareAttrs>().head_size;
  const int64_t c = call.in[0].last(), rows = call.in[0].rows(), grain = row_grain(rows);
  auto* partials = reinterpret_cast<float*>(ctx.workspace(partial_bytes(rows, 2 * c)));
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    float* sums = partials + begin / grain * 2 * c;
    std::fill(sums, sums + 2 * c, 0.0f);
    for (int64_t o = begin * c; o < end * c; o += n) {
      const int64_t channel = o % c;
      const float* __restrict k0 = call.in[0].f32() + o;
      const float* __restrict logit = call.in[1].f32() + o;
      const float* __restrict k_k = call.param[0].f32() + channel;
      const float* __restrict k_a = call.param[1].f32() + channel;
      const float* __restrict dk = call.dout[0].f32() + o;
      const float* __restrict da = call.dout[1].f32() + o;
      const float* __restrict db = call.dout[2].f32() + o;
      float* __restrict sum_kk = sums + channel;
      float* __restrict sum_ka = sums + c + channel;
      const float norm = std::sqrt(lane_sum(n, [&](int64_t i) {
        const float u = k0[i] * k_k[i];
        return u * u;
      }));
      const bool floored = norm < kNormFloor;
      const float scale = 1.0f / (floored ? kNormFloor : norm);
      float z[kMaxHead], dz[kMaxHead], dk0[kMaxHead], dlogit[kMaxHead];
      for (int64_t i = 0; i < n; ++i) {
        const Logistic iclr = logistic(logit[i]);
        const float dk_k0 = dk[i] * k0[i];
        z[i] = k0[i] * k_k[i] * scale;
        dz[i] = db[i] * iclr.value - da[i];
        dlogit[i] = (db[i] * z[i] + dk_k0 * k_a[i]) * iclr.slope;
        dk0[i] = dk[i] * (1.0f - iclr.complement * k_a[i]);
        sum_ka[i] -= dk_k0 * iclr.complement;
      }
      const float radial = floored ? 0.0f : lane_sum(n, [&](int64_t i) { return dz[i] * z[i]; });
      for (int64_t i = 0; i < n; ++i) {
        const float du = (dz[i] - z[i] * radial) * scale;
        dk0[i] += du * k_k[i];
        sum_kk[i] += du * k0[i];
      }
      emit(at(call.din[0], o), dk0, n, call.din_mode[0]);
      emit(at(call.din[1], o), dlogit, n, call.din_mode[1]);
    }
  });
  const int64_t chunks = row_chunks(rows);
  reduce_partials(partials, chunks, 2 * c, c, at(call.dparam[0], 0), call.dparam_mode[0]);
  reduce_partials(partials + c, chunks, 2 * c, c, at(call.dparam[1], 0), call.dparam_mode[1]);
}

}  // namespace rwkv::cpu
