#include "kernels/cuda/decode/batch_kernels.h"

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/decode/weights.cuh"
#include "kernels/wkv/cuda/wkv7_fp16.cuh"

namespace rwkv::cuda::decode {
namespace {

constexpr int kN = rwkv::decode::kHeadSize;
constexpr int kMixThreads = 512;

template <class T>
struct alignas(16) Eight {
  T x[8];
};
template <class T>
__device__ __forceinline__ void load8(const T* p, float (&x)[8]) {
  Weights<T>::get(*reinterpret_cast<const uint4*>(p), x);
}
template <class T>
__device__ __forceinline__ void store8(T* p, const float (&x)[8]) {
  Eight<T> y;
#pragma unroll
  for (int i = 0; i < 8; ++i) y.x[i] = Weights<T>::from(x[i]);
  *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&y);
}
__device__ __forceinline__ void load8f(const float* p, float (&x)[8]) {
  const float4 a = *reinterpret_cast<const float4*>(p), b = *reinterpret_cast<const float4*>(p + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

/// Sum over the block; `memory` holds a float per warp and is free again at the next barrier but
/// one.
__device__ __forceinline__ float block_sum(float x, float* memory) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) memory[threadIdx.x / 32] = x;
  __syncthreads();
  float all = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) all += memory[i];
  return all;
}

/// A block per row, a thread per 8 channels. Everything is asked for before anything is needed.
template <class T, int kOutputs>
__global__ void __launch_bounds__(kMixThreads) mix_kernel(const Mix a) {
  __shared__ float memory[2][kMixThreads / 32];
  const int row = static_cast<int>(blockIdx.x), d = a.width;
  const int slot = a.slots[row], e = 8 * static_cast<int>(threadIdx.x);
  const int64_t at = static_cast<int64_t>(row) * d + e;
  const bool mine = e < d;
  float x[8] = {}, y[8] = {}, weight[8] = {}, bias[8] = {}, before[8] = {};
  float mix[kOutputs > 0 ? kOutputs : 1][8] = {};
  T* const shift = static_cast<T*>(a.shift) + slot * a.shift_stride + e;
  if (mine) {
    if (a.embedding != nullptr)
      load8(static_cast<const T*>(a.embedding) + static_cast<int64_t>(a.tokens[row]) * d + e, x);
    else
      load8f(a.residual + at, x);
    if (a.add != nullptr && a.add_parts == 0) load8(static_cast<const T*>(a.add) + at, y);
    for (int n = 0; n < a.add_parts; ++n) {
      float part[8];
      load8f(static_cast<const float*>(a.add) + static_cast<int64_t>(n) * a.rows * d + at, part);
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] += part[i];
    }
    load8f(a.weight + e, weight);
    load8f(a.bias + e, bias);
    if constexpr (kOutputs > 0) {
      load8(shift, before);
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) load8f(a.mix + static_cast<int64_t>(n) * d + e, mix[n]);
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i] += y[i];
    sum += x[i];
  }
  if (mine && (a.add != nullptr || a.embedding != nullptr)) {
    auto* const to = reinterpret_cast<float4*>(a.residual + at);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
  }
  const float mean = block_sum(sum, memory[0]) / static_cast<float>(d);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares += mine ? (x[i] - mean) * (x[i] - mean) : 0.0f;
  const float scale = rsqrtf(block_sum(squares, memory[1]) / static_cast<float>(d) + 1e-5f);
  if (mine) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    T* const out = static_cast<T*>(a.out) + at;
    if constexpr (kOutputs == 0) {
      store8(out, x);
    } else {
      store8(shift, x);
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) {
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] = x[i] + (before[i] - x[i]) * mix[n][i];
        store8(out + static_cast<int64_t>(n) * a.rows * d, y);
      }
    }
  }
  if (kOutputs == 0 && threadIdx.x == 0) ++a.elapsed[slot];
}

template <class T>
void mix_as(const Mix& a, unsigned threads, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(a.rows);
  if (a.mix == nullptr)
    mix_kernel<T, 0><<<rows, threads, 0, stream>>>(a);
  else if (a.outputs == 6)
    mix_kernel<T, 6><<<rows, threads, 0, stream>>>(a);
  else
    mix_kernel<T, 1><<<rows, threads, 0, stream>>>(a);
}

/// Two sums over the 64 threads of a block.
__device__ __forceinline__ float2 pair_sum(float x, float y, float2* memory) {
  x = warp_sum(x);
  y = warp_sum(y);
  if (threadIdx.x % 32 == 0) memory[threadIdx.x / 32] = make_float2(x, y);
  __syncthreads();
  return make_float2(memory[0].x + memory[1].x, memory[0].y + memory[1].y);
}

__device__ __forceinline__ float logistic_of(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

/// Pack q of row i of a state in shared memory: no access meets a bank twice.
__device__ __forceinline__ int swizzled(int i, int q) {
  return i * fp16::kPacks + (q ^ (i & (fp16::kPacks - 1)));
}

/// A block per sequence and head, a thread per row of the state.
template <class T, bool kHalf>
__global__ void __launch_bounds__(kN, kHalf ? 14 : 8) heads_kernel(const Heads a) {
  using rwkv::decode::Param;
  __shared__ alignas(16) uint4 packs[kHalf ? fp16::kStatePacks : 1];
  __shared__ alignas(16) float fr[kN], fw[kN], fk[kN], fa[kN], fb[kN];
  __shared__ float2 memory[3][2];
  const int i = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x) % a.heads;
  const int row = static_cast<int>(blockIdx.x) / a.heads;
  const int d = a.heads * kN, channel = head * kN + i;
  const int slot = a.slots[row];
  std::byte* const state =
      a.wkv + slot * a.wkv_stride + static_cast<int64_t>(head) * (kN * kN * (kHalf ? 2 : 4));
  if constexpr (kHalf) {
    const auto* from = reinterpret_cast<const uint4*>(state);
#pragma unroll
    for (int n = 0; n < fp16::kPacks; ++n) {
      const int at = n * kN + i;
      const auto to = static_cast<uint32_t>(
          __cvta_generic_to_shared(&packs[swizzled(at / fp16::kPacks, at % fp16::kPacks)]));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from + at)
                   : "memory");
    }
    asm volatile("cp.async.commit_group;\n" ::: "memory");
  }
  const int64_t at = static_cast<int64_t>(row) * d + channel;
  const auto get = [&](const void* p) { return Weights<T>::to(static_cast<const T*>(p)[at]); };
  const auto param = [&](Param p) {
    return __ldg(a.params + static_cast<int64_t>(p) * d + channel);
  };
  const float r = get(a.r), k0 = get(a.k), v0 = get(a.v);
  const float decay = param(rwkv::decode::kW0) + get(a.low[0]);
  const float rate = logistic_of(param(rwkv::decode::kA0) + get(a.low[1]));
  const float gate = get(a.low[3]);
  float v = v0;
  if (a.layer == 0)
    static_cast<T*>(a.v_first)[at] = static_cast<const T*>(a.v)[at];
  else
    v += (get(a.v_first) - v0) * logistic_of(param(rwkv::decode::kV0) + get(a.low[2]));
  const float u = k0 * param(rwkv::decode::kKeyScale);
  const float k = k0 * (1.0f + (rate - 1.0f) * param(rwkv::decode::kKeyRate));
  const float2 sums = pair_sum(u * u, r * k * param(rwkv::decode::kBonus), memory[0]);
  const float z = u / fmaxf(sqrtf(sums.x), 1e-12f);
  float y;
  if constexpr (kHalf) {
    auto* const hr = reinterpret_cast<__half*>(fr);
    auto* const hw = reinterpret_cast<__half*>(fw);
    auto* const hk = reinterpret_cast<__half*>(fk);
    auto* const ha = reinterpret_cast<__half*>(fa);
    auto* const hb = reinterpret_cast<__half*>(fb);
    const auto elapsed = static_cast<uint32_t>(a.elapsed[slot]);
    hr[i] = __float2half_rn(r);
    hk[i] = __float2half_rn(k);
    ha[i] = __float2half_rn(-z);
    hb[i] = __float2half_rn(z * rate);
    hw[i] = __float2half_rn(fp16::decay_of<true>(
        decay, dither_phase(elapsed, static_cast<uint32_t>(head), static_cast<uint32_t>(i))));
    asm volatile("cp.async.wait_all;\n" ::: "memory");
    __syncthreads();
    fp16::Row own;
#pragma unroll
    for (int q = 0; q < fp16::kPacks; ++q)
      *reinterpret_cast<fp16::Pack*>(&own.s[4 * q]) = fp16::load_pack(&packs[swizzled(i, q)]);
    const __half sum = fp16::dot(own, ha);
    __half half_y;
    fp16::advance<true>(own, sum, __float2half_rn(v * a.scale), hw, hk, hb, hr, ha, &half_y);
    y = __half2float(half_y) * a.inverse;
#pragma unroll
    for (int q = 0; q < fp16::kPacks; ++q)
      fp16::store_pack(&packs[swizzled(i, q)], *reinterpret_cast<const fp16::Pack*>(&own.s[4 * q]));
  } else {
    constexpr float kScale = 0.6065306597126334f;
    fr[i] = r;
    fk[i] = k;
    fa[i] = -z;
    fb[i] = z * rate;
    fw[i] = expf(-kScale / (1.0f + expf(-decay)));
    __syncthreads();
    auto* const own = reinterpret_cast<float4*>(state) + i * (kN / 4);
    float4 s[kN / 4];
    float sum = 0;
#pragma unroll
    for (int q = 0; q < kN / 4; ++q) {
      s[q] = own[q];
      sum += s[q].x * fa[4 * q] + s[q].y * fa[4 * q + 1] + s[q].z * fa[4 * q + 2] +
             s[q].w * fa[4 * q + 3];
    }
    y = 0;
    const auto next = [&](float old, int j) {
      const float now = old * fw[j] + sum * fb[j] + v * fk[j];
      y += now * fr[j];
      return now;
    };
#pragma unroll
    for (int q = 0; q < kN / 4; ++q) {
      s[q].x = next(s[q].x, 4 * q);
      s[q].y = next(s[q].y, 4 * q + 1);
      s[q].z = next(s[q].z, 4 * q + 2);
      s[q].w = next(s[q].w, 4 * q + 3);
      own[q] = s[q];
    }
  }
  const float mean = pair_sum(y, 0.0f, memory[1]).x * (1.0f / kN);
  if constexpr (kHalf) {  // the barrier of the sum was also that of the state
    auto* const to = reinterpret_cast<uint4*>(state);
#pragma unroll
    for (int n = 0; n < fp16::kPacks; ++n) {
      const int pack = n * kN + i;
      to[pack] = packs[swizzled(pack / fp16::kPacks, pack % fp16::kPacks)];
    }
  }
  const float variance = pair_sum((y - mean) * (y - mean), 0.0f, memory[2]).x * (1.0f / kN);
  const float normal = (y - mean) * rsqrtf(variance + 64e-5f);
  const float mixed =
      normal * param(rwkv::decode::kLnXWeight) + param(rwkv::decode::kLnXBias) + sums.y * v;
  static_cast<T*>(a.out)[at] = Weights<T>::from(mixed * gate);
}

template <class T>
__global__ void squared_relu_kernel(T* x, int64_t packs) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  float v[8];
  load8(x + 8 * i, v);
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const float p = fmaxf(v[e], 0.0f);
    v[e] = p * p;
  }
  store8(x + 8 * i, v);
}

template <class Fn>
void by_half(DType type, const Fn& fn) {
  RWKV_ASSERT(type == DType::kF16 || type == DType::kBF16, "batch of ", dtype_name(type));
  if (type == DType::kF16)
    fn(__half());
  else
    fn(__nv_bfloat16());
}

}  // namespace

void launch_mix(DType type, const Mix& a, cudaStream_t stream) {
  RWKV_ASSERT(a.width % 8 == 0 && a.width <= 8 * kMixThreads, "width ", a.width);
  const auto threads = static_cast<unsigned>((a.width / 8 + 31) / 32 * 32);
  by_half(type, [&]<class T>(T) { mix_as<T>(a, threads, stream); });
  RWKV_LAUNCHED("mix of a batch", stream);
}

void launch_heads(DType type, const Heads& a, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(a.rows * a.heads);
  by_half(type, [&]<class T>(T) {
    if (a.half_state)
      heads_kernel<T, true><<<blocks, kN, 0, stream>>>(a);
    else
      heads_kernel<T, false><<<blocks, kN, 0, stream>>>(a);
  });
  RWKV_LAUNCHED("heads of a batch", stream);
}

void launch_squared_relu(DType type, void* x, int64_t n, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t packs = n / 8;
  by_half(type, [&]<class T>(T) {
    squared_relu_kernel<T>
        <<<static_cast<unsigned>((packs + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
            static_cast<T*>(x), packs);
  });
  RWKV_LAUNCHED("squared relu of a batch", stream);
}

}  // namespace rwkv::cuda::decode
