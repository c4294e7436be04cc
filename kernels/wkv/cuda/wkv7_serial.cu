/// WKV-7 as the plain recurrence in fp32 (spec rwkv7 2.3, 3.4): one block per head of size kN.
/// Forward: a thread holds one row of the state. It saves the state after every 16 tokens (f32
/// vectors: 4) and u of every token. Backward: from each saved state back, token by token,
///   S_{t-1} = (S_t - u b^T - v k^T) diag(1 / decay)
/// which 16 steps keep below 1.2e-3 relative error even with every decay at its floor (spec 3.5):
/// less than the rounding of bf16 gradients. 4 steps keep it below 1e-6.
/// A thread holds one column of S and of lambda, and one row of lambda, so that no sum crosses
/// threads; only e = lambda b is exchanged. With heads of 128 two neighbour lanes share a row and
/// column, every second entry each, and add their sums.

#include <cuda_bf16.h>

#include "kernels/wkv/cuda/wkv7_cuda.h"

namespace rwkv::cuda {
namespace {

/// Tokens from one saved state to the next.
template <class T>
constexpr int interval() {
  return sizeof(T) == sizeof(float) ? 4 : 16;
}
constexpr float kDecay = 0.60653065971263342f;

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ float widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void put(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void put(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16(x);
}
// Writes a gradient, or adds it to what is there; null: nobody wants it.
template <class T>
__device__ __forceinline__ void put_gradient(T* to, int64_t at, float x, unsigned add) {
  if (to == nullptr) return;
  if ((add & 1u) != 0) x += widen(to[at]);
  put(to + at, x);
}

template <class T>
struct SerialParams {
  const T *r, *w, *k, *v, *a, *b, *dy;
  const float *s0, *ds_out;
  T *y, *dr, *dw, *dk, *dv, *da, *db;
  float *s_out, *ds0, *states, *u;
  int tokens, heads, head_size, intervals;
  unsigned add;
  bool has_s0;
  __device__ int64_t stride() const { return static_cast<int64_t>(heads) * head_size; }
  __device__ int64_t origin(int head) const {
    return static_cast<int64_t>(head / heads) * tokens * stride() +
           static_cast<int64_t>(head % heads) * head_size;
  }
};

template <class T, int kN>
__global__ void __launch_bounds__(kN) serial_forward_kernel(const SerialParams<T> p) {
  struct Token {
    float r[kN], w[kN], k[kN], a[kN], b[kN];
  };
  __shared__ Token tokens[2];
  const int i = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x);
  const int64_t stride = p.stride(), state = static_cast<int64_t>(head) * kN * kN;
  int64_t x = p.origin(head) + i;
  float s[kN];
#pragma unroll
  for (int j = 0; j < kN; ++j) s[j] = p.s0 == nullptr ? 0.0f : p.s0[state + i * kN + j];
  for (int t = 0; t < p.tokens; ++t, x += stride) {
    Token& now = tokens[t & 1];
    now.r[i] = widen(p.r[x]);
    now.w[i] = expf(-kDecay / (1.0f + expf(-widen(p.w[x]))));
    now.k[i] = widen(p.k[x]);
    now.a[i] = widen(p.a[x]);
    now.b[i] = widen(p.b[x]);
    const float v = widen(p.v[x]);
    __syncthreads();
    float u = 0;
#pragma unroll
    for (int j = 0; j < kN; ++j) u += s[j] * now.a[j];
    float y = 0;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      s[j] = s[j] * now.w[j] + (u * now.b[j] + v * now.k[j]);
      y += s[j] * now.r[j];
    }
    put(p.y + x, y);
    if (p.u == nullptr) continue;
    p.u[x] = u;
    if ((t + 1) % interval<T>() == 0 || t + 1 == p.tokens) {
      float* to =
          p.states + (static_cast<int64_t>(head) * p.intervals + t / interval<T>()) * kN * kN;
#pragma unroll
      for (int j = 0; j < kN; ++j) to[j * kN + i] = s[j];
    }
  }
  if (p.s_out != nullptr)
#pragma unroll
    for (int j = 0; j < kN; ++j) p.s_out[state + i * kN + j] = s[j];
}

// Threads that share a row and a column in the backward.
template <int kN>
inline constexpr int kParts = kN > 64 ? kN / 64 : 1;

// Sum over the threads that share a row or column.
template <int kN>
__device__ __forceinline__ float join(float x) {
#pragma unroll
  for (int d = 1; d < kParts<kN>; d *= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

template <class T, int kN>
__global__ void __launch_bounds__(kN* kParts<kN>) serial_backward_kernel(const SerialParams<T> p) {
  constexpr int kShare = kParts<kN>, kOwn = kN / kShare;
  struct Token {
    float r[kN], w[kN], k[kN], v[kN], a[kN], b[kN], dy[kN], u[kN];
  };
  __shared__ Token tokens[2];
  __shared__ float e[2][kN];
  const int j = static_cast<int>(threadIdx.x) / kShare,
            part = static_cast<int>(threadIdx.x) % kShare;
  const int head = static_cast<int>(blockIdx.x);
  const int64_t stride = p.stride(), state = static_cast<int64_t>(head) * kN * kN;
  int64_t x = p.origin(head) + j + (p.tokens - 1) * stride;
  float s[kOwn], column[kOwn], row[kOwn];  // entry m is row or column m kShare + part
#pragma unroll
  for (int m = 0; m < kOwn; ++m) {
    const int i = m * kShare + part;
    column[m] = p.ds_out == nullptr ? 0.0f : p.ds_out[state + i * kN + j];
    row[m] = p.ds_out == nullptr ? 0.0f : p.ds_out[state + j * kN + i];
  }
  for (int t = p.tokens - 1; t >= 0; --t, x -= stride) {
    if ((t + 1) % interval<T>() == 0 || t + 1 == p.tokens) {
      const float* from =
          p.states + (static_cast<int64_t>(head) * p.intervals + t / interval<T>()) * kN * kN;
#pragma unroll
      for (int m = 0; m < kOwn; ++m) s[m] = from[j * kN + m * kShare + part];
    }
    Token& now = tokens[t & 1];
    const float up = expf(-widen(p.w[x])), sigmoid = 1.0f / (1.0f + up);
    const float decay = expf(-kDecay * sigmoid), inverse = 1.0f / decay;
    const float r = widen(p.r[x]), k = widen(p.k[x]), a = widen(p.a[x]), b = widen(p.b[x]),
                dy = widen(p.dy[x]);
    if (part == 0) {
      now.r[j] = r;
      now.w[j] = decay;
      now.k[j] = k;
      now.v[j] = widen(p.v[x]);
      now.a[j] = a;
      now.b[j] = b;
      now.dy[j] = dy;
      now.u[j] = p.u[x];
    }
    __syncthreads();
    float dr = 0, dw = 0, dk = 0, db = 0, dv = 0, own_e = 0;
#pragma unroll
    for (int m = 0; m < kOwn; ++m) {
      const int i = m * kShare + part;
      dr += s[m] * now.dy[i];
      column[m] += now.dy[i] * r;
      s[m] = (s[m] - now.u[i] * b - now.v[i] * k) * inverse;
      dw += column[m] * s[m];
      dk += column[m] * now.v[i];
      db += column[m] * now.u[i];
    }
#pragma unroll
    for (int m = 0; m < kOwn; ++m) {
      const int i = m * kShare + part;
      row[m] += dy * now.r[i];
      dv += row[m] * now.k[i];
      own_e += row[m] * now.b[i];
    }
    own_e = join<kN>(own_e);
    if (part == 0) e[t & 1][j] = own_e;
    __syncthreads();
    float da = 0;
#pragma unroll
    for (int m = 0; m < kOwn; ++m) {
      const int i = m * kShare + part;
      const float other = e[t & 1][i];
      da += s[m] * other;
      column[m] = column[m] * decay + other * a;
      row[m] = row[m] * now.w[i] + own_e * now.a[i];
    }
    dr = join<kN>(dr);
    dw = join<kN>(dw);
    dk = join<kN>(dk);
    dv = join<kN>(dv);
    da = join<kN>(da);
    db = join<kN>(db);
    if (part != 0) continue;
    if (t == 0 && !p.has_s0) dw = da = 0;  // nothing came before
    put_gradient(p.dr, x, dr, p.add);
    put_gradient(p.dw, x, dw * decay * -kDecay * sigmoid * (up < 1e30f ? up * sigmoid : 1.0f),
                 p.add >> 1);
    put_gradient(p.dk, x, dk, p.add >> 2);
    put_gradient(p.dv, x, dv, p.add >> 3);
    put_gradient(p.da, x, da, p.add >> 4);
    put_gradient(p.db, x, db, p.add >> 5);
  }
#pragma unroll
  for (int m = 0; m < kOwn; ++m)
    put_gradient(p.ds0, state + j * kN + m * kShare + part, row[m], p.add >> 6);
}

template <class T>
int intervals(const Wkv7Shape& s) {
  return (s.tokens + interval<T>() - 1) / interval<T>();
}

template <class T>
SerialParams<T> common(const Wkv7Shape& s, void* saved) {
  SerialParams<T> p{};
  p.tokens = s.tokens;
  p.heads = s.heads;
  p.head_size = s.head_size;
  p.intervals = intervals<T>(s);
  if (saved != nullptr) {
    p.states = static_cast<float*>(saved);
    p.u =
        p.states + static_cast<size_t>(s.batch) * s.heads * p.intervals * s.head_size * s.head_size;
  }
  return p;
}

template <class T>
cudaError_t forward(const Wkv7Shape& s, const Wkv7Forward& io, cudaStream_t stream) {
  SerialParams<T> p = common<T>(s, io.saved);
  const auto in = [](const void* x) { return static_cast<const T*>(x); };
  p.r = in(io.r);
  p.w = in(io.w);
  p.k = in(io.k);
  p.v = in(io.v);
  p.a = in(io.a);
  p.b = in(io.b);
  p.s0 = io.s0;
  p.y = static_cast<T*>(io.y);
  p.s_out = io.s_out;
  const auto blocks = static_cast<unsigned>(s.batch * s.heads);
  if (s.head_size == 32)
    serial_forward_kernel<T, 32><<<blocks, 32, 0, stream>>>(p);
  else if (s.head_size == 64)
    serial_forward_kernel<T, 64><<<blocks, 64, 0, stream>>>(p);
  else if (s.head_size == 128)
    serial_forward_kernel<T, 128><<<blocks, 128, 0, stream>>>(p);
  else
    return cudaErrorInvalidValue;
  return cudaGetLastError();
}

template <class T>
cudaError_t backward(const Wkv7Shape& s, const Wkv7Backward& io, cudaStream_t stream) {
  SerialParams<T> p = common<T>(s, const_cast<void*>(io.saved));
  const auto in = [](const void* x) { return static_cast<const T*>(x); };
  const auto out = [](void* x) { return static_cast<T*>(x); };
  p.r = in(io.r);
  p.w = in(io.w);
  p.k = in(io.k);
  p.v = in(io.v);
  p.a = in(io.a);
  p.b = in(io.b);
  p.dy = in(io.dy);
  p.ds_out = io.ds_out;
  p.has_s0 = io.has_s0;
  p.dr = out(io.dr);
  p.dw = out(io.dw);
  p.dk = out(io.dk);
  p.dv = out(io.dv);
  p.da = out(io.da);
  p.db = out(io.db);
  p.ds0 = io.ds0;
  p.add = io.add;
  const auto blocks = static_cast<unsigned>(s.batch * s.heads);
  if (s.head_size == 32)
    serial_backward_kernel<T, 32><<<blocks, 32 * kParts<32>, 0, stream>>>(p);
  else if (s.head_size == 64)
    serial_backward_kernel<T, 64><<<blocks, 64 * kParts<64>, 0, stream>>>(p);
  else if (s.head_size == 128)
    serial_backward_kernel<T, 128><<<blocks, 128 * kParts<128>, 0, stream>>>(p);
  else
    return cudaErrorInvalidValue;
  return cudaGetLastError();
}

}  // namespace

size_t wkv7_serial_saved_bytes(const Wkv7Shape& s, bool io_f32) {
  const size_t streams = static_cast<size_t>(s.batch) * s.heads,
               n = static_cast<size_t>(s.head_size);
  const auto states =
      static_cast<size_t>(io_f32 ? intervals<float>(s) : intervals<__nv_bfloat16>(s));
  return 4 * streams * n * (states * n + static_cast<size_t>(s.tokens));
}

cudaError_t wkv7_serial_forward(const Wkv7Shape& shape, const Wkv7Forward& io, bool io_f32,
                                cudaStream_t stream) {
  return io_f32 ? forward<float>(shape, io, stream) : forward<__nv_bfloat16>(shape, io, stream);
}

cudaError_t wkv7_serial_backward(const Wkv7Shape& shape, const Wkv7Backward& io, bool io_f32,
                                 cudaStream_t stream) {
  return io_f32 ? backward<float>(shape, io, stream) : backward<__nv_bfloat16>(shape, io, stream);
}

}  // namespace rwkv::cuda
