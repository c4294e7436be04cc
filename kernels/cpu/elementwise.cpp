// Elementwise ops: threads share runs of elements; limited by memory bandwidth.

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/rows.h"

namespace rwkv::cpu {
namespace {

/// Calls fn(begin, n) for pieces of at most kBlock elements.
template <class Fn>
void blocks(int64_t total, const Fn& fn) {
  parallel_elements(total, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kBlock) fn(i, std::min(kBlock, end - i));
  });
}

}  // namespace

void add_forward(Context&, const OpCall& call) {
  const float* x = call.in[0].f32();
  const float* y = call.in[1].f32();
  float* out = call.out[0].f32();
  parallel_elements(call.out[0].numel(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = x[i] + y[i];
  });
}

void add_backward(Context&, const OpCall& call) {
  const float* dout = call.dout[0].f32();
  for (size_t k = 0; k < 2; ++k) {
    if (call.din_mode[k] == Accum::kSkip) continue;
    float* din = call.din[k].f32();
    parallel_elements(call.dout[0].numel(), [&](int64_t begin, int64_t end) {
      emit(din + begin, dout + begin, end - begin, call.din_mode[k]);
    });
  }
}

void squared_relu_forward(Context&, const OpCall& call) {
  const float* x = call.in[0].f32();
  float* y = call.out[0].f32();
  parallel_elements(call.out[0].numel(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float p = x[i] < 0.0f ? 0.0f : x[i];  // this way round a NaN stays NaN
      y[i] = p * p;
    }
  });
}

void squared_relu_backward(Context&, const OpCall& call) {
  const Accum mode = call.din_mode[0];
  if (mode == Accum::kSkip) return;
  const float* x = call.in[0].f32();
  const float* dy = call.dout[0].f32();
  float* dx = call.din[0].f32();
  blocks(call.dout[0].numel(), [&](int64_t begin, int64_t n) {
    float out[kBlock];
    for (int64_t i = 0; i < n; ++i) {
      const float v = x[begin + i];
      out[i] = dy[begin + i] * 2.0f * (v < 0.0f ? 0.0f : v);
    }
    emit(dx + begin, out, n, mode);
  });
}

void gate_forward(Context&, const OpCall& call) {
  const float* r = call.in[0].f32();
  const float* x = call.in[1].f32();
  const float* residual = call.in.size() == 3 ? call.in[2].f32() : nullptr;
  float* y = call.out[0].f32();
  parallel_elements(call.out[0].numel(), [&](int64_t begin, int64_t end) {
    if (residual != nullptr)
      for (int64_t i = begin; i < end; ++i) y[i] = residual[i] + sigmoid(r[i]) * x[i];
    else
      for (int64_t i = begin; i < end; ++i) y[i] = sigmoid(r[i]) * x[i];
  });
}

void gate_backward(Context&, const OpCall& call) {
  const float* r = call.in[0].f32();
  const float* x = call.in[1].f32();
  const float* dy = call.dout[0].f32();
  const bool residual = call.din.size() == 3;
  blocks(call.dout[0].numel(), [&](int64_t begin, int64_t n) {
    float dr[kBlock], dx[kBlock];
    for (int64_t i = 0; i < n; ++i) {
      const int64_t j = begin + i;
      const Logistic gate = logistic(r[j]);
      dr[i] = dy[j] * x[j] * gate.slope;
      dx[i] = dy[j] * gate.value;
    }
    emit(at(call.din[0], begin), dr, n, call.din_mode[0]);
    emit(at(call.din[1], begin), dx, n, call.din_mode[1]);
    if (residual) emit(at(call.din[2], begin), dy + begin, n, call.din_mode[2]);
  });
}

void value_residual_forward(Context&, const OpCall& call) {
  const float* v0 = call.in[0].f32();
  const float* v_first = call.in[1].f32();
  const float* logit = call.in[2].f32();
  float* v = call.out[0].f32();
  parallel_elements(call.out[0].numel(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) v[i] = v0[i] + (v_first[i] - v0[i]) * sigmoid(logit[i]);
  });
}

void value_residual_backward(Context&, const OpCall& call) {
  const float* v0 = call.in[0].f32();
  const float* v_first = call.in[1].f32();
  const float* logit = call.in[2].f32();
  const float* dv = call.dout[0].f32();
  blocks(call.dout[0].numel(), [&](int64_t begin, int64_t n) {
    float dv0[kBlock], dfirst[kBlock], dlogit[kBlock];
    for (int64_t i = 0; i < n; ++i) {
      const int64_t j = begin + i;
      const Logistic nu = logistic(logit[j]);
      dv0[i] = dv[j] * nu.complement;
      dfirst[i] = dv[j] * nu.value;
      dlogit[i] = dv[j] * (v_first[j] - v0[j]) * nu.slope;
    }
    emit(at(call.din[0], begin), dv0, n, call.din_mode[0]);
    emit(at(call.din[1], begin), dfirst, n, call.din_mode[1]);
    emit(at(call.din[2], begin), dlogit, n, call.din_mode[2]);
  });
}

}  // namespace rwkv::cpu
