/// WKV-4 as the stabilised recurrence: one thread per (sequence, channel), threads of a warp on
/// neighbouring channels. A thread asks for the next 16 tokens while it works on 16. Saved: the
/// state ahead of every 16 tokens. Backward: segments from last to first, run forward again into
/// registers (y, scale and gradient of each denominator), then backward. Limited by the latency of
/// its chain of dependent operations. Also the sums of partial parameter gradients of all variants.

#include "kernels/wkv/cuda/wkv4_common.cuh"

namespace rwkv::cuda {
namespace {

using namespace wkv4;  // NOLINT: device helpers of this op

constexpr int kSegment = 16;
constexpr int kThreads = 32;

int segments_of(const Wkv4Shape& s) {
  return (s.tokens + kSegment - 1) / kSegment;
}

/// Blocks that the channels of a sequence take. A grid has many more columns than rows: sequences
/// and groups share its columns.
__host__ __device__ inline int groups_of(const Wkv4Shape& s) {
  return (s.channels + kThreads - 1) / kThreads;
}

/// Tokens of a segment, `stride` apart; zeros beyond n.
template <class T>
__device__ __forceinline__ void load_segment(const T* from, int64_t stride, int n,
                                             float (&to)[kSegment]) {
  if (n == kSegment) {
#pragma unroll
    for (int i = 0; i < kSegment; ++i) to[i] = widen(from[i * stride]);
  } else {
#pragma unroll
    for (int i = 0; i < kSegment; ++i) to[i] = i < n ? widen(from[i * stride]) : 0.0f;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const Wkv4Shape s, const Wkv4Forward io) {
  const int groups = groups_of(s);
  const int c = static_cast<int>(blockIdx.x) % groups * kThreads + static_cast<int>(threadIdx.x);
  if (c >= s.channels) return;
  const int b = static_cast<int>(blockIdx.x) / groups;
  const int64_t state = static_cast<int64_t>(b) * s.channels + c, stride = s.channels;
  const int64_t base = static_cast<int64_t>(b) * s.tokens * stride + c;
  const auto* k = static_cast<const T*>(io.k) + base;
  const auto* v = static_cast<const T*>(io.v) + base;
  auto* y = static_cast<T*>(io.y) + base;
  const float d = decay_of(io.tau[c]) * kLog2E, u = io.u[c] * kLog2E;
  PastOf<LongScale> past = first_past<LongScale>(io, state);
  const int segments = (s.tokens + kSegment - 1) / kSegment;
  float* saved = io.saved;
  if (saved != nullptr) saved += static_cast<int64_t>(b) * segments * 3 * stride + c;
  float ks[kSegment], vs[kSegment], next_k[kSegment], next_v[kSegment];
  load_segment(k, stride, min(kSegment, s.tokens), ks);
  load_segment(v, stride, min(kSegment, s.tokens), vs);
  for (int t0 = 0; t0 < s.tokens; t0 += kSegment) {
    const int n = min(kSegment, s.tokens - t0), more = min(kSegment, s.tokens - t0 - n);
    k += kSegment * stride;
    v += kSegment * stride;
    load_segment(k, stride, more, next_k);
    load_segment(v, stride, more, next_v);
    if (saved != nullptr) {
      store_rows(saved, stride, past, d);
      saved += 3 * stride;
    }
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      if (i >= n) break;
      const float ki = key_of(ks[i]);
      put(y + i * stride, Readout(past, d, u + ki, vs[i]).y);
      past.push(d, ki, vs[i]);
    }
    y += kSegment * stride;
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      ks[i] = next_k[i];
      vs[i] = next_v[i];
    }
  }
  if (io.a_out != nullptr) store_last(io, state, past, d);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const Wkv4Shape s, const Wkv4Backward io, float* partials) {
  const int groups = groups_of(s);
  const int c = static_cast<int>(blockIdx.x) % groups * kThreads + static_cast<int>(threadIdx.x);
  if (c >= s.channels) return;
  const int b = static_cast<int>(blockIdx.x) / groups;
  const int64_t state = static_cast<int64_t>(b) * s.channels + c, stride = s.channels;
  const auto* k = static_cast<const T*>(io.k);
  const auto* v = static_cast<const T*>(io.v);
  const auto* dy = static_cast<const T*>(io.dy);
  const float d = decay_of(io.tau[c]) * kLog2E, u = io.u[c] * kLog2E;
  const int segments = (s.tokens + kSegment - 1) / kSegment;
  const float* saved = io.saved + static_cast<int64_t>(b) * segments * 3 * stride + c;
  FutureOf<LongScale> future = last_future<LongScale>(io, state);
  double total_d = 0, total_u = 0;
  float ks[kSegment], vs[kSegment], hs[kSegment], ys[kSegment], qs[kSegment];
  float next_k[kSegment], next_v[kSegment], next_h[kSegment];
  PastOf<LongScale> past, next_past;
  const auto load = [&](int segment) {
    const int t0 = segment * kSegment, n = min(kSegment, s.tokens - t0);
    const int64_t at = (static_cast<int64_t>(b) * s.tokens + t0) * stride + c;
    load_segment(k + at, stride, n, next_k);
    load_segment(v + at, stride, n, next_v);
    load_segment(dy + at, stride, n, next_h);
    next_past = load_rows<LongScale>(saved + segment * 3 * stride, stride);
  };
  load(segments - 1);
  for (int segment = segments - 1; segment >= 0; --segment) {
    const int t0 = segment * kSegment, n = min(kSegment, s.tokens - t0);
    const int64_t at = (static_cast<int64_t>(b) * s.tokens + t0) * stride + c;
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      ks[i] = key_of(next_k[i]);
      vs[i] = next_v[i];
      hs[i] = next_h[i];
    }
    past = next_past;
    if (segment > 0) load(segment - 1);
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      if (i >= n) break;
      const Readout read(past, d, u + ks[i], vs[i]);
      ys[i] = read.y;
      qs[i] = read.q;
      hs[i] *= read.inverse;
      past.push(d, ks[i], vs[i]);
    }
    float sum_d = 0, sum_u = 0;
#pragma unroll
    for (int i = kSegment - 1; i >= 0; --i) {
      if (i >= n) continue;
      const TokenGradient g(future, d, ks[i], vs[i], ys[i], hs[i]);
      put_gradient(static_cast<T*>(io.dk), at + i * stride, g.dk, io.add, kDk);
      put_gradient(static_cast<T*>(io.dv), at + i * stride, g.dv, io.add, kDv);
      sum_d += g.dd;
      sum_u += g.du;
      future.push(d, qs[i], hs[i], ys[i]);
    }
    total_d += static_cast<double>(sum_d);
    total_u += static_cast<double>(sum_u);
  }
  total_d += static_cast<double>(state_gradient(io, state, d, future));
  partials[2 * static_cast<int64_t>(b) * stride + c] = static_cast<float>(total_d);
  partials[(2 * static_cast<int64_t>(b) + 1) * stride + c] = static_cast<float>(total_u);
}

// --- sums of partial parameter gradients
// ----------------------------------------------------------

constexpr int kSumLanes = 32, kSumRows = 16;

/// Rows [begin, end) of (rows, 2, C), in an order that depends on their number alone; valid where
/// threadIdx.y is 0.
__device__ __forceinline__ void sum_rows(const float* partials, int begin, int end, int channels,
                                         int c, double& d, double& u) {
  __shared__ double part[2][kSumRows][kSumLanes];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  d = u = 0;
  if (c < channels) {
#pragma unroll 8
    for (int row = begin + y; row < end; row += kSumRows) {
      const float* at = partials + 2 * static_cast<int64_t>(row) * channels + c;
      d += static_cast<double>(at[0]);
      u += static_cast<double>(at[channels]);
    }
  }
  part[0][y][x] = d;
  part[1][y][x] = u;
  __syncthreads();
  if (y != 0) return;
  for (int i = 1; i < kSumRows; ++i) {
    d += part[0][i][x];
    u += part[1][i][x];
  }
}

/// Block row i sums its share of the rows to row i.
__global__ void fewer_rows_kernel(const float* partials, int rows, int channels, float* sums) {
  const int c = static_cast<int>(blockIdx.x) * kSumLanes + static_cast<int>(threadIdx.x);
  const int i = static_cast<int>(blockIdx.y), all = static_cast<int>(gridDim.y);
  const auto share = [&](int n) { return static_cast<int>(static_cast<int64_t>(rows) * n / all); };
  double d, u;
  sum_rows(partials, share(i), share(i + 1), channels, c, d, u);
  if (threadIdx.y != 0 || c >= channels) return;
  sums[2 * static_cast<int64_t>(i) * channels + c] = static_cast<float>(d);
  sums[(2 * static_cast<int64_t>(i) + 1) * channels + c] = static_cast<float>(u);
}

__global__ void param_kernel(const float* partials, int rows, int channels, const Wkv4Backward io) {
  const int c = static_cast<int>(blockIdx.x) * kSumLanes + static_cast<int>(threadIdx.x);
  double d, u;
  sum_rows(partials, 0, rows, channels, c, d, u);
  if (threadIdx.y != 0 || c >= channels) return;
  put_gradient(io.dtau, c, static_cast<float>(d * static_cast<double>(decay_of(io.tau[c]))), io.add,
               kDtau);
  put_gradient(io.du, c, static_cast<float>(u), io.add, kDu);
}

unsigned blocks_of(const Wkv4Shape& s) {
  return static_cast<unsigned>(s.batch) * static_cast<unsigned>(groups_of(s));
}

}  // namespace

size_t wkv4_serial_saved_bytes(const Wkv4Shape& s) {
  return sizeof(float) * 3 * static_cast<size_t>(s.batch) * static_cast<size_t>(segments_of(s)) *
         static_cast<size_t>(s.channels);
}

size_t wkv4_serial_workspace_bytes(const Wkv4Shape& s) {
  return sizeof(float) * 2 * (static_cast<size_t>(s.batch) + kParamScratchRows) *
         static_cast<size_t>(s.channels);
}

cudaError_t wkv4_serial_forward(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  if (s.f32)
    forward_kernel<float><<<blocks_of(s), kThreads, 0, stream>>>(s, io);
  else
    forward_kernel<__nv_bfloat16><<<blocks_of(s), kThreads, 0, stream>>>(s, io);
  return cudaGetLastError();
}

cudaError_t wkv4_serial_backward(const Wkv4Shape& s, const Wkv4Backward& io, cudaStream_t stream) {
  auto* partials = static_cast<float*>(io.workspace);
  if (s.f32)
    backward_kernel<float><<<blocks_of(s), kThreads, 0, stream>>>(s, io, partials);
  else
    backward_kernel<__nv_bfloat16><<<blocks_of(s), kThreads, 0, stream>>>(s, io, partials);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return param_gradients(partials, s.batch, s.channels, io,
                         partials + 2 * static_cast<int64_t>(s.batch) * s.channels, stream);
}

cudaError_t wkv4::param_gradients(const float* partials, int rows, int channels,
                                  const Wkv4Backward& io, float* scratch, cudaStream_t stream) {
  if (io.dtau == nullptr && io.du == nullptr) return cudaSuccess;
  const auto groups = static_cast<unsigned>((channels + kSumLanes - 1) / kSumLanes);
  const dim3 block(kSumLanes, kSumRows);
  if (rows > 8 * kParamScratchRows) {
    fewer_rows_kernel<<<dim3(groups, kParamScratchRows), block, 0, stream>>>(partials, rows,
                                                                             channels, scratch);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    partials = scratch;
    rows = kParamScratchRows;
  }
  param_kernel<<<dim3(groups), block, 0, stream>>>(partials, rows, channels, io);
  return cudaGetLastError();
}

}  // namespace rwkv::cuda
