// All mixes of a token shift in one pass. Threads share chunks of rows (a row is one token); a
// chunk reads one row before it (forward) or after it (backward), never across sequences.

#include <cstring>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/ops/token_shift.h"

namespace rwkv::cpu {
namespace {

struct Shape {
  int64_t t, c, rows;
  size_t mixes;
};

Shape shape_of(const OpCall& call, const TensorView& h) {
  return {h.dim(1), h.dim(2), h.dim(0) * h.dim(1), call.param.size()};
}

/// The row before row r of h: the previous token; at the start of a sequence prev, or null for
/// zeros.
const float* previous(const OpCall& call, const Shape& s, int64_t r) {
  if (r % s.t != 0) return call.in[0].f32() + (r - 1) * s.c;
  return call.in.size() > 1 ? call.in[1].f32() + r / s.t * s.c : nullptr;
}

}  // namespace

void token_shift_forward(Context&, const OpCall& call) {
  const Shape s = shape_of(call, call.in[0]);
  const bool weights_current = call.attr<TokenShiftAttrs>().weights_current;
  const float* h = call.in[0].f32();
  parallel_for(s.rows, row_grain(s.rows), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c0 = 0; c0 < s.c; c0 += kBlock) {
        const int64_t n = std::min(kBlock, s.c - c0);
        const float zeros[kBlock] = {};
        const float* p = previous(call, s, r);
        const float* __restrict before = p == nullptr ? zeros : p + c0;
        const float* __restrict now = h + r * s.c + c0;
        const float* __restrict base = weights_current ? before : now;
        float delta[kBlock];
        if (weights_current)
          for (int64_t i = 0; i < n; ++i) delta[i] = now[i] - before[i];
        else
          for (int64_t i = 0; i < n; ++i) delta[i] = before[i] - now[i];
        for (size_t m = 0; m < s.mixes; ++m) {
          const float* __restrict mix = call.param[m].f32() + c0;
          float* __restrict y = call.out[m].f32() + r * s.c + c0;
          for (int64_t i = 0; i < n; ++i) y[i] = base[i] + delta[i] * mix[i];
        }
      }
    }
  });
  if (call.in.size() > 1) {
    float* last = call.out[s.mixes].f32();
    for (int64_t b = 0; b < s.rows / s.t; ++b)
      std::memcpy(last + b * s.c, h + ((b + 1) * s.t - 1) * s.c,
                  static_cast<size_t>(s.c) * sizeof(float));
  }
}

// With coefficients  y_t = h_t * own + h_{t-1} * past  per mix (own = 1 - mix, past = mix, or the
// other way round):  dh_t = sum over mixes of dy_t * own + dy_{t+1} * past  within the sequence.
void token_shift_backward(Context& ctx, const OpCall& call) {
  const Shape s = shape_of(call, call.in[0]);
  const bool weights_current = call.attr<TokenShiftAttrs>().weights_current;
  const bool has_prev = call.in.size() > 1;
  const float* h = call.in[0].f32();
  const Accum mode = call.din_mode[0];
  const int64_t grain = row_grain(s.rows), stride = static_cast<int64_t>(s.mixes) * s.c;
  auto* partials = reinterpret_cast<float*>(ctx.workspace(partial_bytes(s.rows, stride)));
  parallel_for(s.rows, grain, [&](int64_t begin, int64_t end) {
    float* sums = partials + begin / grain * stride;
    std::fill(sums, sums + stride, 0.0f);
    for (int64_t r = begin; r < end; ++r) {
      const bool is_last = (r + 1) % s.t == 0;
      for (int64_t c0 = 0; c0 < s.c; c0 += kBlock) {
        const int64_t n = std::min(kBlock, s.c - c0);
        const float zeros[kBlock] = {};
        const float* p = previous(call, s, r);
        const float* __restrict before = p == nullptr ? zeros : p + c0;
        const float* __restrict now = h + r * s.c + c0;
        float delta[kBlock], dh[kBlock] = {};
        if (weights_current)
          for (int64_t i = 0; i < n; ++i) delta[i] = now[i] - before[i];
        else
          for (int64_t i = 0; i < n; ++i) delta[i] = before[i] - now[i];
        for (size_t m = 0; m < s.mixes; ++m) {
          const float* __restrict mix = call.param[m].f32() + c0;
          const float* __restrict dy = call.dout[m].f32() + r * s.c + c0;
          const float* __restrict dnext = is_last ? zeros : dy + s.c;
          float* __restrict sum = sums + static_cast<int64_t>(m) * s.c + c0;
          for (int64_t i = 0; i < n; ++i) sum[i] += dy[i] * delta[i];
          if (weights_current)
            for (int64_t i = 0; i < n; ++i) dh[i] += dy[i] * mix[i] + dnext[i] * (1.0f - mix[i]);
          else
            for (int64_t i = 0; i < n; ++i) dh[i] += dy[i] * (1.0f - mix[i]) + dnext[i] * mix[i];
        }
        if (has_prev && is_last) {
          const float* dlast = call.dout[s.mixes].f32() + r / s.t * s.c + c0;
          for (int64_t i = 0; i < n; ++i) dh[i] += dlast[i];
        }
        emit(at(call.din[0], r * s.c + c0), dh, n, mode);
        if (has_prev && r % s.t == 0 && call.din_mode[1] != Accum::kSkip) {
          float dprev[kBlock] = {};
          for (size_t m = 0; m < s.mixes; ++m) {
            const float* mix = call.param[m].f32() + c0;
            const float* dy = call.dout[m].f32() + r * s.c + c0;
            for (int64_t i = 0; i < n; ++i)
              dprev[i] += dy[i] * (weights_current ? 1.0f - mix[i] : mix[i]);
          }
          emit(call.din[1].f32() + r / s.t * s.c + c0, dprev, n, call.din_mode[1]);
        }
      }
    }
  });
  for (size_t m = 0; m < s.mixes; ++m)
    reduce_partials(partials + static_cast<int64_t>(m) * s.c, row_chunks(s.rows), stride, s.c,
                    at(call.dparam[m], 0), call.dparam_mode[m]);
}

}  // namespace rwkv::cpu
