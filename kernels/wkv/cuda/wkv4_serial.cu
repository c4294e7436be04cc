/// WKV-4 as the stabilised recurrence: one thread per (sequence, channel), threads of a warp on
/// neighbouring channels. Saved: the state ahead of every 32 tokens. Backward: segments from last
/// to first, run forward again into shared memory (y, scale and gradient of each denominator), then
/// backward. Limited by the latency of its chain of dependent operations.

#include "kernels/wkv/cuda/wkv4_common.cuh"

namespace rwkv::cuda {
namespace {

using namespace wkv4;  // NOLINT: device helpers of this op

constexpr int kSegment = 32;
constexpr int kThreads = 64;

int segments_of(const Wkv4Shape& s) {
  return (s.tokens + kSegment - 1) / kSegment;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const Wkv4Shape s, const Wkv4Forward io) {
  const int c = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (c >= s.channels) return;
  const int b = static_cast<int>(blockIdx.y);
  const int64_t state = static_cast<int64_t>(b) * s.channels + c;
  const auto* k = static_cast<const T*>(io.k);
  const auto* v = static_cast<const T*>(io.v);
  auto* y = static_cast<T*>(io.y);
  const float d = decay_of(io.tau[c]), u = io.u[c];
  Past past = first_past(io.a0, io.b0, io.p0, state);
  float* saved = io.saved;
  const int segments = (s.tokens + kSegment - 1) / kSegment;
  if (saved != nullptr) saved += static_cast<int64_t>(b) * segments * 3 * s.channels + c;
  int64_t at = static_cast<int64_t>(b) * s.tokens * s.channels + c;
  for (int t0 = 0; t0 < s.tokens; t0 += kSegment) {
    if (saved != nullptr) {
      store_rows(saved, s.channels, past, d);
      saved += 3 * static_cast<int64_t>(s.channels);
    }
    const int n = min(kSegment, s.tokens - t0);
#pragma unroll 4
    for (int i = 0; i < n; ++i, at += s.channels) {
      const float ki = widen(k[at]), vi = widen(v[at]);
      put(y + at, Readout(past, d, u + ki, vi).y);
      past.push(d, ki, vi);
    }
  }
  if (io.a_out == nullptr) return;
  io.a_out[state] = past.a;
  io.b_out[state] = past.b;
  io.p_out[state] = past.scale.at(d);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const Wkv4Shape s, const Wkv4Backward io, float* partials) {
  __shared__ float y[kSegment][kThreads], q[kSegment][kThreads], h[kSegment][kThreads];
  const int x = static_cast<int>(threadIdx.x);
  const int c = static_cast<int>(blockIdx.x) * kThreads + x;
  if (c >= s.channels) return;  // no barriers below: a thread reads its own column alone
  const int b = static_cast<int>(blockIdx.y);
  const int64_t state = static_cast<int64_t>(b) * s.channels + c, stride = s.channels;
  const auto* k = static_cast<const T*>(io.k);
  const auto* v = static_cast<const T*>(io.v);
  const auto* dy = static_cast<const T*>(io.dy);
  const float d = decay_of(io.tau[c]), u = io.u[c];
  const int segments = (s.tokens + kSegment - 1) / kSegment;
  const float* saved = io.saved + static_cast<int64_t>(b) * segments * 3 * stride + c;
  Future future = last_future(io, state);
  double total_d = 0, total_u = 0;
  for (int segment = segments - 1; segment >= 0; --segment) {
    const int t0 = segment * kSegment, n = min(kSegment, s.tokens - t0);
    int64_t at = (static_cast<int64_t>(b) * s.tokens + t0) * stride + c;
    Past past = load_rows(saved + segment * 3 * stride, s.channels);
    for (int i = 0; i < n; ++i, at += stride) {
      const float ki = widen(k[at]), vi = widen(v[at]);
      const Readout read(past, d, u + ki, vi);
      y[i][x] = read.y;
      q[i][x] = read.q;
      h[i][x] = widen(dy[at]) * read.inverse;
      past.push(d, ki, vi);
    }
    float sum_d = 0, sum_u = 0;
    for (int i = n - 1; i >= 0; --i) {
      at -= stride;
      const float ki = widen(k[at]), vi = widen(v[at]), yi = y[i][x];
      const TokenGradient g(future, d, u, ki, vi, yi, q[i][x], h[i][x]);
      put_gradient(static_cast<T*>(io.dk), at, g.dk, io.add, kDk);
      put_gradient(static_cast<T*>(io.dv), at, g.dv, io.add, kDv);
      sum_d += g.dd;
      sum_u += g.du;
      future.push(d, q[i][x], h[i][x], yi);
    }
    total_d += static_cast<double>(sum_d);
    total_u += static_cast<double>(sum_u);
  }
  total_d += static_cast<double>(state_gradient(io, state, d, future));
  partials[2 * b * stride + c] = static_cast<float>(total_d);
  partials[(2 * b + 1) * stride + c] = static_cast<float>(total_u);
}

__global__ void param_kernel(const float* partials, int parts, int channels,
                             const Wkv4Backward io) {
  const int c = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (c >= channels) return;
  double d = 0, u = 0;
  for (int part = 0; part < parts; ++part) {
    const float* row = partials + 2 * static_cast<int64_t>(part) * channels + c;
    d += static_cast<double>(row[0]);
    u += static_cast<double>(row[channels]);
  }
  put_gradient(io.dtau, c, static_cast<float>(d * static_cast<double>(decay_of(io.tau[c]))), io.add,
               kDtau);
  put_gradient(io.du, c, static_cast<float>(u), io.add, kDu);
}

dim3 grid_of(const Wkv4Shape& s) {
  return dim3(static_cast<unsigned>((s.channels + kThreads - 1) / kThreads),
              static_cast<unsigned>(s.batch));
}

}  // namespace

size_t wkv4_serial_saved_bytes(const Wkv4Shape& s) {
  return sizeof(float) * 3 * static_cast<size_t>(s.batch) * static_cast<size_t>(segments_of(s)) *
         static_cast<size_t>(s.channels);
}

size_t wkv4_serial_workspace_bytes(const Wkv4Shape& s) {
  return sizeof(float) * 2 * static_cast<size_t>(s.batch) * static_cast<size_t>(s.channels);
}

cudaError_t wkv4_serial_forward(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  if (s.f32)
    forward_kernel<float><<<grid_of(s), kThreads, 0, stream>>>(s, io);
  else
    forward_kernel<__nv_bfloat16><<<grid_of(s), kThreads, 0, stream>>>(s, io);
  return cudaGetLastError();
}

cudaError_t wkv4_serial_backward(const Wkv4Shape& s, const Wkv4Backward& io, cudaStream_t stream) {
  auto* partials = static_cast<float*>(io.workspace);
  if (s.f32)
    backward_kernel<float><<<grid_of(s), kThreads, 0, stream>>>(s, io, partials);
  else
    backward_kernel<__nv_bfloat16><<<grid_of(s), kThreads, 0, stream>>>(s, io, partials);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return wkv4_param_gradients(partials, s.batch, s.channels, io, stream);
}

cudaError_t wkv4_param_gradients(const float* partials, int parts, int channels,
                                 const Wkv4Backward& io, cudaStream_t stream) {
  if (io.dtau == nullptr && io.du == nullptr) return cudaSuccess;
  param_kernel<<<static_cast<unsigned>((channels + kThreads - 1) / kThreads), kThreads, 0,
                 stream>>>(partials, parts, channels, io);
  return cudaGetLastError();
}

}  // namespace rwkv::cuda
