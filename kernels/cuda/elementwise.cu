// Elementwise ops: a thread handles one 16-byte pack of every operand (or one element where shapes
// or addresses do not allow packs). No shared memory; limited by memory bandwidth.

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/math.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Add {
  const T *x, *y;
  T* out;
  template <int N>
  __device__ void operator()(int64_t i) const {
    float a[N], b[N];
    load<N>(x + i, a);
    load<N>(y + i, b);
#pragma unroll
    for (int e = 0; e < N; ++e) a[e] += b[e];
    store<N>(out + i, a);
  }
};

template <class T>
struct AddBackward {
  const T* dout;
  Grad<T> dx, dy;
  template <int N>
  __device__ void operator()(int64_t i) const {
    float d[N];
    load<N>(dout + i, d);
    emit<N>(dx, i, d);
    emit<N>(dy, i, d);
  }
};

template <class T>
struct SquaredRelu {
  const T* x;
  T* y;
  template <int N>
  __device__ void operator()(int64_t i) const {
    float v[N];
    load<N>(x + i, v);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float p = v[e] < 0.0f ? 0.0f : v[e];  // this way round a NaN stays NaN
      v[e] = p * p;
    }
    store<N>(y + i, v);
  }
};

template <class T>
struct SquaredReluBackward {
  const T *x, *dy;
  Grad<T> dx;
  template <int N>
  __device__ void operator()(int64_t i) const {
    float v[N], d[N];
    load<N>(x + i, v);
    load<N>(dy + i, d);
#pragma unroll
    for (int e = 0; e < N; ++e) d[e] *= 2.0f * (v[e] < 0.0f ? 0.0f : v[e]);
    emit<N>(dx, i, d);
  }
};

template <class T>
struct Gate {
  const T *r, *x, *residual;  ///< residual: null means none
  T* y;
  template <int N>
  __device__ void operator()(int64_t i) const {
    float a[N], b[N], c[N] = {};
    load<N>(r + i, a);
    load<N>(x + i, b);
    if (residual != nullptr) load<N>(residual + i, c);
#pragma unroll
    for (int e = 0; e < N; ++e) a[e] = c[e] + logistic<T>(a[e]).value * b[e];
    store<N>(y + i, a);
  }
};

template <class T>
struct GateBackward {
  const T *r, *x, *dy;
  Grad<T> dr, dx, dresidual;
  template <int N>
  __device__ void operator()(int64_t i) const {
    float a[N], b[N], d[N];
    load<N>(r + i, a);
    load<N>(x + i, b);
    load<N>(dy + i, d);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const Logistic gate = logistic<T>(a[e]);
      a[e] = d[e] * b[e] * gate.slope;
      b[e] = d[e] * gate.value;
    }
    emit<N>(dr, i, a);
    emit<N>(dx, i, b);
    emit<N>(dresidual, i, d);
  }
};

template <class T>
struct ValueResidual {
  const T *v0, *v_first, *logit;
  T* v;
  template <int N>
  __device__ void operator()(int64_t i) const {
    float a[N], b[N], l[N];
    load<N>(v0 + i, a);
    load<N>(v_first + i, b);
    load<N>(logit + i, l);
#pragma unroll
    for (int e = 0; e < N; ++e) a[e] += (b[e] - a[e]) * logistic<T>(l[e]).value;
    store<N>(v + i, a);
  }
};

template <class T>
struct ValueResidualBackward {
  const T *v0, *v_first, *logit, *dv;
  Grad<T> dv0, dfirst, dlogit;
  template <int N>
  __device__ void operator()(int64_t i) const {
    float a[N], b[N], l[N], d[N];
    load<N>(v0 + i, a);
    load<N>(v_first + i, b);
    load<N>(logit + i, l);
    load<N>(dv + i, d);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const Logistic nu = logistic<T>(l[e]);
      l[e] = d[e] * (b[e] - a[e]) * nu.slope;
      a[e] = d[e] * nu.complement;
      b[e] = d[e] * nu.value;
    }
    emit<N>(dv0, i, a);
    emit<N>(dfirst, i, b);
    emit<N>(dlogit, i, l);
  }
};

/// dx of the last token is dy, all other rows are zero.
template <class T>
struct LastTokenBackward {
  const T* dy;
  Grad<T> dx;
  int64_t t, c;
  template <int N>
  __device__ void operator()(int64_t i) const {
    const int64_t row = i / c;
    const bool last = (row + 1) % t == 0;
    if (!last && dx.mode == Accum::kAdd) return;
    float d[N] = {};
    if (last) load<N>(dy + row / t * c + i % c, d);
    emit<N>(dx, i, d);
  }
};

template <int N, class F>
__global__ void __launch_bounds__(kThreads) elementwise_kernel(F f, int64_t n) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i < n) f.template operator()<N>(i);
}

template <class T, class F>
void launch(const Context& ctx, const char* what, const F& f, int64_t n, bool packed) {
  const int64_t threads = packed ? n / kPack<T> : n;
  const auto blocks = static_cast<unsigned>(ceil_div(threads, kThreads));
  if (packed)
    elementwise_kernel<kPack<T>><<<blocks, kThreads, 0, stream_of(ctx)>>>(f, n);
  else
    elementwise_kernel<1><<<blocks, kThreads, 0, stream_of(ctx)>>>(f, n);
  RWKV_LAUNCHED(what, stream_of(ctx));
}

bool all_skipped(const OpCall& call) {
  for (const Accum mode : call.din_mode)
    if (mode != Accum::kSkip) return false;
  return true;
}

}  // namespace

void add_forward(Context& ctx, const OpCall& call) {
  by_type("add", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.out[0].numel();
    launch<T>(ctx, "add forward",
              Add<T>{call.in[0].as<T>(), call.in[1].as<T>(), call.out[0].as<T>()}, n,
              packs<T>(n, {call.in, call.out}));
  });
}

void add_backward(Context& ctx, const OpCall& call) {
  if (all_skipped(call)) return;
  by_type("add", call.dout[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.dout[0].numel();
    launch<T>(ctx, "add backward",
              AddBackward<T>{call.dout[0].as<T>(), grad_of<T>(call.din[0], call.din_mode[0]),
                             grad_of<T>(call.din[1], call.din_mode[1])},
              n, packs<T>(n, {call.dout, call.din}));
  });
}

void squared_relu_forward(Context& ctx, const OpCall& call) {
  by_type("squared_relu", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.out[0].numel();
    launch<T>(ctx, "squared_relu forward", SquaredRelu<T>{call.in[0].as<T>(), call.out[0].as<T>()},
              n, packs<T>(n, {call.in, call.out}));
  });
}

void squared_relu_backward(Context& ctx, const OpCall& call) {
  if (all_skipped(call)) return;
  by_type("squared_relu", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.dout[0].numel();
    launch<T>(ctx, "squared_relu backward",
              SquaredReluBackward<T>{call.in[0].as<T>(), call.dout[0].as<T>(),
                                     grad_of<T>(call.din[0], call.din_mode[0])},
              n, packs<T>(n, {call.in, call.dout, call.din}));
  });
}

void gate_forward(Context& ctx, const OpCall& call) {
  by_type("gate", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.out[0].numel();
    launch<T>(ctx, "gate forward",
              Gate<T>{call.in[0].as<T>(), call.in[1].as<T>(),
                      call.in.size() == 3 ? call.in[2].as<T>() : nullptr, call.out[0].as<T>()},
              n, packs<T>(n, {call.in, call.out}));
  });
}

void gate_backward(Context& ctx, const OpCall& call) {
  if (all_skipped(call)) return;
  by_type("gate", call.dout[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.dout[0].numel();
    GateBackward<T> f{call.in[0].as<T>(),
                      call.in[1].as<T>(),
                      call.dout[0].as<T>(),
                      grad_of<T>(call.din[0], call.din_mode[0]),
                      grad_of<T>(call.din[1], call.din_mode[1]),
                      {}};
    if (call.din.size() == 3) f.dresidual = grad_of<T>(call.din[2], call.din_mode[2]);
    launch<T>(ctx, "gate backward", f, n, packs<T>(n, {call.in.first(2), call.dout, call.din}));
  });
}

void value_residual_forward(Context& ctx, const OpCall& call) {
  by_type("value_residual", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.out[0].numel();
    launch<T>(ctx, "value_residual forward",
              ValueResidual<T>{call.in[0].as<T>(), call.in[1].as<T>(), call.in[2].as<T>(),
                               call.out[0].as<T>()},
              n, packs<T>(n, {call.in, call.out}));
  });
}

void value_residual_backward(Context& ctx, const OpCall& call) {
  if (all_skipped(call)) return;
  by_type("value_residual", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.dout[0].numel();
    launch<T>(
        ctx, "value_residual backward",
        ValueResidualBackward<T>{call.in[0].as<T>(), call.in[1].as<T>(), call.in[2].as<T>(),
                                 call.dout[0].as<T>(), grad_of<T>(call.din[0], call.din_mode[0]),
                                 grad_of<T>(call.din[1], call.din_mode[1]),
                                 grad_of<T>(call.din[2], call.din_mode[2])},
        n, packs<T>(n, {call.in, call.dout, call.din}));
  });
}

void last_token_forward(Context& ctx, const OpCall& call) {
  const TensorView &x = call.in[0], &y = call.out[0];
  const size_t row = static_cast<size_t>(x.dim(2)) * dtype_bytes(x.spec.dtype);
  const size_t sequence = row * static_cast<size_t>(x.dim(1));
  RWKV_CUDA(cudaMemcpy2DAsync(y.data, row, static_cast<std::byte*>(x.data) + sequence - row,
                              sequence, row, static_cast<size_t>(x.dim(0)),
                              cudaMemcpyDeviceToDevice, stream_of(ctx)));
}

void last_token_backward(Context& ctx, const OpCall& call) {
  if (all_skipped(call)) return;
  by_type("last_token", call.dout[0], [&](auto zero) {
    using T = decltype(zero);
    const TensorView& dx = call.din[0];
    launch<T>(ctx, "last_token backward",
              LastTokenBackward<T>{call.dout[0].as<T>(), grad_of<T>(dx, call.din_mode[0]),
                                   dx.dim(1), dx.dim(2)},
              dx.numel(), packs<T>(dx.dim(2), {call.dout, call.din}));
  });
}

}  // namespace rwkv::cuda
