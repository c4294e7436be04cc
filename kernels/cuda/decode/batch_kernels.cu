#include "kernels/cuda/decode/batch_kernels.h"

#include <algorithm>

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/decode/dependent.cuh"
#include "kernels/cuda/decode/weights.cuh"
#include "kernels/wkv/cuda/tma.cuh"
#include "kernels/wkv/cuda/wgmma.cuh"
#include "kernels/wkv/cuda/wkv7_fp16.cuh"

namespace rwkv::cuda::decode {
namespace {

constexpr int kN = rwkv::decode::kHeadSize;
constexpr int kMixThreads = 512;
constexpr int kMixPrefetch = 4;  ///< blocks that bring vectors to the L2 cache
/// From this width on, blocks have more than one row if there are more rows than multiprocessors.
constexpr int kMixWide = 2048;
constexpr int kHeadBlocks = 12;  ///< of a multiprocessor, f16 states

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

/// Sums over the block; `memory` holds a float per warp and sum and is free again at the next
/// barrier but one.
template <int kSums>
__device__ __forceinline__ void block_sums(float (&x)[kSums], float (*memory)[kMixThreads / 32]) {
#pragma unroll
  for (int r = 0; r < kSums; ++r) {
    x[r] = warp_sum(x[r]);
    if (threadIdx.x % 32 == 0) memory[r][threadIdx.x / 32] = x[r];
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kSums; ++r) x[r] = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i)
#pragma unroll
    for (int r = 0; r < kSums; ++r) x[r] += memory[r][i];
}

__device__ __forceinline__ void prefetch(const float* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
}

/// A block for kRows rows, a thread per 8 channels. What does not come from the kernel before is
/// asked for before waiting for it. Rows of one block share what is read of vectors of weights,
/// which are more than all else for one row with six outputs.
template <class T, int kOutputs, int kRows>
__global__ void __launch_bounds__(kMixThreads, kRows == 1 ? 3 : 1) mix_kernel(const Mix a) {
  __shared__ float memory[2][kRows][kMixThreads / 32];
  let_next_kernel_start();
  const int begin = kRows * static_cast<int>(blockIdx.x), d = a.width;
  const int e = 8 * static_cast<int>(threadIdx.x);
  const bool mine = e < d;
  // Rows that are not there read the last one and write nothing: loads without branches.
  const auto there = [&](int r) { return kRows == 1 || begin + r < a.rows; };
  const auto row = [&](int r) { return kRows == 1 ? begin : min(begin + r, a.rows - 1); };
  const auto at = [&](int r) { return static_cast<int64_t>(row(r)) * d + e; };
  float x[kRows][8] = {};
  uint4 before[kRows] = {};
  T* shift[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    shift[r] = static_cast<T*>(a.shift) + a.slots[row(r)] * a.shift_stride + e;
  if (mine) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (kOutputs > 0) before[r] = *reinterpret_cast<const uint4*>(shift[r]);
    if (a.embedding != nullptr)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        load8(static_cast<const T*>(a.embedding) + static_cast<int64_t>(a.tokens[row(r)]) * d + e,
              x[r]);
    // Vectors come from memory, not from the cache: matrices went through it since the last token.
    if (blockIdx.x < kMixPrefetch) {
      prefetch(a.weight + e);
      prefetch(a.bias + e);
      for (int n = 0; n < kOutputs; ++n) prefetch(a.mix + static_cast<int64_t>(n) * d + e);
    }
  }
  wait_for_kernel_before();
  if (mine) {
    uint4 add[kRows] = {};
    if (a.add != nullptr)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        add[r] = *reinterpret_cast<const uint4*>(static_cast<const T*>(a.add) + at(r));
    if (a.embedding == nullptr)
#pragma unroll
      for (int r = 0; r < kRows; ++r) load8f(a.residual + at(r), x[r]);
    if (a.add != nullptr)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float y[8];
        Weights<T>::get(add[r], y);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[r][i] += y[i];
      }
  }
  float sum[kRows], scale[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sum[r] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[r] += x[r][i];
    if (mine && there(r)) {
      auto* const to = reinterpret_cast<float4*>(a.residual + at(r));
      to[0] = make_float4(x[r][0], x[r][1], x[r][2], x[r][3]);
      to[1] = make_float4(x[r][4], x[r][5], x[r][6], x[r][7]);
    }
  }
  block_sums(sum, memory[0]);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float mean = sum[r] / static_cast<float>(d);
    scale[r] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[r][i] -= mean;
      scale[r] = fmaf(x[r][i], x[r][i], scale[r]);
    }
    if (!mine) scale[r] = 0;
  }
  // A block alone on its multiprocessor has these on their way before it needs them.
  float weight[8], bias[8], mix[2][8];
  const auto load_norm = [&] {
    load8f(a.weight + e, weight);
    load8f(a.bias + e, bias);
  };
  const auto load_mix = [&](int n) { load8f(a.mix + static_cast<int64_t>(n) * d + e, mix[n & 1]); };
  if (kRows > 1 && mine) {
    load_norm();
    if (kOutputs > 0) load_mix(0);
  }
  block_sums(scale, memory[1]);
#pragma unroll
  for (int r = 0; r < kRows; ++r) scale[r] = rsqrtf(scale[r] / static_cast<float>(d) + 1e-5f);
  if (mine) {
    if (kRows == 1) load_norm();
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < 8; ++i) x[r][i] = fmaf(x[r][i] * scale[r], weight[i], bias[i]);
    T* const out = static_cast<T*>(a.out);
    if constexpr (kOutputs == 0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (there(r)) store8(out + at(r), x[r]);
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (there(r)) store8(shift[r], x[r]);
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) {
        if (kRows == 1) load_mix(n);
        if (kRows > 1 && n + 1 < kOutputs) load_mix(n + 1);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float old[8], y[8];
          Weights<T>::get(before[r], old);
#pragma unroll
          for (int i = 0; i < 8; ++i) y[i] = fmaf(old[i] - x[r][i], mix[n & 1][i], x[r][i]);
          if (there(r)) store8(out + static_cast<int64_t>(n) * a.rows * d + at(r), y);
        }
      }
    }
  }
  if (kOutputs == 0 && threadIdx.x == 0)
    for (int r = 0; r < kRows; ++r)
      if (there(r)) ++a.elapsed[a.slots[begin + r]];
}

template <class T, int kRows>
cudaError_t mix_rows(const Mix& a, unsigned threads, bool overlap, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((a.rows + kRows - 1) / kRows);
  const auto kernel = a.mix == nullptr ? mix_kernel<T, 0, kRows>
                      : a.outputs == 6 ? mix_kernel<T, 6, kRows>
                                       : mix_kernel<T, 1, kRows>;
  return launch_dependent(kernel, blocks, threads, 0, 1, overlap, stream, a);
}
template <class T>
cudaError_t mix_as(const Mix& a, unsigned threads, bool overlap, cudaStream_t stream) {
  if (a.width < kMixWide || a.rows <= a.multiprocessors)
    return mix_rows<T, 1>(a, threads, overlap, stream);
  return a.rows <= 2 * a.multiprocessors ? mix_rows<T, 2>(a, threads, overlap, stream)
                                         : mix_rows<T, 3>(a, threads, overlap, stream);
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

template <class E, int kPer>
struct alignas(sizeof(E) * kPer) Few {
  E x[kPer];
};

/// A head's vectors of weights, of kPer neighbouring channels.
template <int kPer>
struct HeadParams {
  using Value = Few<float, kPer>;
  Value w0, a0, v0, key_scale, key_rate, bonus, weight, bias;
  __device__ __forceinline__ HeadParams(const Heads& a, int channel) {
    using namespace rwkv::decode;
    const auto get = [&](Param which) {
      return *reinterpret_cast<const Value*>(
          a.params + static_cast<int64_t>(which) * (a.heads * kN) + channel);
    };
    w0 = get(kW0), a0 = get(kA0), v0 = get(kV0);
    key_scale = get(kKeyScale), key_rate = get(kKeyRate), bonus = get(kBonus);
    weight = get(kLnXWeight), bias = get(kLnXBias);
  }
};

/// What the products gave for them, as it lies in memory.
template <class T, int kPer>
struct HeadInputs {
  using Value = Few<T, kPer>;
  Value r, k, v, w, in, gate, mix, first;
  __device__ __forceinline__ void fetch(const Heads& a, int64_t at) {
    const auto get = [&](const void* p) {
      return *reinterpret_cast<const Value*>(static_cast<const T*>(p) + at);
    };
    r = get(a.r), k = get(a.k), v = get(a.v);
    w = get(a.low[0]), in = get(a.low[1]), gate = get(a.low[3]);
    if (a.layer > 0) mix = get(a.low[2]), first = get(a.v_first);
  }
};

/// What the state is worked on with, before the sums over the head.
template <class T, int kPer>
struct Channels {
  float r[kPer], k[kPer], v[kPer], decay[kPer], rate[kPer], gate[kPer], u[kPer];
  float squares = 0, bonus = 0;  ///< sums of u^2 and r k r_k

  __device__ __forceinline__ Channels(const Heads& a, const HeadParams<kPer>& p,
                                      const HeadInputs<T, kPer>& x, int64_t at) {
    const auto to = [](T y) { return Weights<T>::to(y); };
    if (a.layer == 0) *reinterpret_cast<Few<T, kPer>*>(static_cast<T*>(a.v_first) + at) = x.v;
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      r[e] = to(x.r.x[e]);
      k[e] = to(x.k.x[e]);
      v[e] = to(x.v.x[e]);
      gate[e] = to(x.gate.x[e]);
      decay[e] = p.w0.x[e] + to(x.w.x[e]);
      rate[e] = logistic_of(p.a0.x[e] + to(x.in.x[e]));
      if (a.layer > 0) v[e] += (to(x.first.x[e]) - v[e]) * logistic_of(p.v0.x[e] + to(x.mix.x[e]));
      u[e] = k[e] * p.key_scale.x[e];
      k[e] *= 1.0f + (rate[e] - 1.0f) * p.key_rate.x[e];
      squares += u[e] * u[e];
      bonus += r[e] * k[e] * p.bonus.x[e];
    }
  }
  /// Group norm of y, bonus and gate. `variance` of the head's y - mean.
  __device__ __forceinline__ void finish(const Heads& a, const HeadParams<kPer>& p, int64_t at,
                                         const float (&centred)[kPer], float variance,
                                         float all_bonus) const {
    const float scale = rsqrtf(variance + 64e-5f);
    Few<T, kPer> out;
#pragma unroll
    for (int e = 0; e < kPer; ++e)
      out.x[e] = Weights<T>::from(
          (centred[e] * scale * p.weight.x[e] + p.bias.x[e] + all_bonus * v[e]) * gate[e]);
    *reinterpret_cast<Few<T, kPer>*>(static_cast<T*>(a.out) + at) = out;
  }
};

/// f32 states: a block per sequence and head, a thread per row of the state.
template <class T>
__global__ void __launch_bounds__(kN, 8) heads_kernel(const Heads a) {
  __shared__ alignas(16) float fr[kN], fw[kN], fk[kN], fa[kN], fb[kN];
  __shared__ float2 memory[3][2];
  let_next_kernel_start();
  const int i = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x) % a.heads;
  const int row = static_cast<int>(blockIdx.x) / a.heads, channel = head * kN + i;
  const int64_t at = static_cast<int64_t>(row) * (a.heads * kN) + channel;
  const HeadParams<1> params(a, channel);
  wait_for_kernel_before();
  HeadInputs<T, 1> inputs;
  inputs.fetch(a, at);
  const Channels<T, 1> own(a, params, inputs, at);
  const float2 sums = pair_sum(own.squares, own.bonus, memory[0]);
  const float z = own.u[0] * rsqrtf(fmaxf(sums.x, 1e-24f)), v = own.v[0];
  constexpr float kScale = 0.6065306597126334f;
  fr[i] = own.r[0];
  fk[i] = own.k[0];
  fa[i] = -z;
  fb[i] = z * own.rate[0];
  fw[i] = expf(-kScale / (1.0f + expf(-own.decay[0])));
  __syncthreads();
  auto* const state =
      reinterpret_cast<float4*>(a.wkv + a.slots[row] * a.wkv_stride) + channel * (kN / 4);
  float4 s[kN / 4];
  float sum = 0;
#pragma unroll
  for (int q = 0; q < kN / 4; ++q) {
    s[q] = state[q];
    sum += s[q].x * fa[4 * q] + s[q].y * fa[4 * q + 1] + s[q].z * fa[4 * q + 2] +
           s[q].w * fa[4 * q + 3];
  }
  float y = 0;
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
    state[q] = s[q];
  }
  const float mean = pair_sum(y, 0.0f, memory[1]).x * (1.0f / kN);
  const float centred[1] = {y - mean};
  const float variance = pair_sum(centred[0] * centred[0], 0.0f, memory[2]).x * (1.0f / kN);
  own.finish(a, params, at, centred, variance, sums.y);
}

/// Two rows of a state.
struct TwoRows {
  fp16::Row of[2];

  /// The chains of u = S a, one per row, as in fp16::dot; x is read once for both.
  __device__ __forceinline__ void dot(const __half* x, __half (&u)[2]) const {
    __half2 sums[2] = {__float2half2_rn(0.0f), __float2half2_rn(0.0f)};
#pragma unroll
    for (int q = 0; q < fp16::kPacks; ++q) {
      const fp16::Pack p = fp16::load_pack(x + 8 * q);
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int e = 0; e < 2; ++e) sums[e] = __hfma2(p.pair[m], of[e].s[4 * q + m], sums[e]);
    }
    u[0] = fp16::joined(sums[0]);
    u[1] = fp16::joined(sums[1]);
  }
  /// One token, as fp16::advance.
  __device__ __forceinline__ void advance(const __half (&u)[2], const __half (&v)[2],
                                          const __half* w, const __half* k, const __half* b,
                                          const __half* r, __half (&y)[2]) {
    const __half2 uu[2] = {__half2half2(u[0]), __half2half2(u[1])};
    const __half2 vv[2] = {__half2half2(v[0]), __half2half2(v[1])};
    __half2 out[2] = {__float2half2_rn(0.0f), __float2half2_rn(0.0f)};
#pragma unroll
    for (int q = 0; q < fp16::kPacks; ++q) {
      const fp16::Pack pw = fp16::load_pack(w + 8 * q), pk = fp16::load_pack(k + 8 * q),
                       pb = fp16::load_pack(b + 8 * q), pr = fp16::load_pack(r + 8 * q);
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const __half2 old = of[e].s[4 * q + m];
          const __half2 now =
              __hfma2(old, pw.pair[m], __hfma2(pk.pair[m], vv[e], __hfma2(uu[e], pb.pair[m], old)));
          of[e].s[4 * q + m] = now;
          out[e] = __hfma2(pr.pair[m], now, out[e]);
        }
    }
    y[0] = fp16::joined(out[0]);
    y[1] = fp16::joined(out[1]);
  }
};

/// f16 states: a warp per head, a lane for two channels and two rows. Warps stay for one head of
/// many sequences; while they work on one, the copy engine brings the state of the next and takes
/// that of the one before away. States do not come from the kernel before.
template <class T>
__global__ void __launch_bounds__(32, kHeadBlocks)
    half_heads_kernel(const Heads a, const __grid_constant__ CUtensorMap states) {
  __shared__ alignas(1024) uint4 packs[2][fp16::kStatePacks];
  __shared__ alignas(16) __half2 vectors[5][kN / 2];
  __shared__ uint64_t barriers[2];
  let_next_kernel_start();
  const int lane = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x) % a.heads;
  const int channel = head * kN + 2 * lane;
  // Warps for this head: the first heads have one more where they do not divide the warps.
  const int step = (static_cast<int>(gridDim.x) - head + a.heads - 1) / a.heads;
  const auto load = [&](int slot, int n) {
    const uint32_t full = shared_address(&barriers[n & 1]);
    expect(full, static_cast<int>(sizeof packs[0]));
    load_tile(shared_address(packs[n & 1]), states, 0, head * kN, slot, full);
  };
  const auto place = [&](int row) { return static_cast<int64_t>(row) * (a.heads * kN) + channel; };
  int row = static_cast<int>(blockIdx.x) / a.heads, slot = a.slots[row];
  if (lane == 0) {
    make_barrier(shared_address(&barriers[0]));
    make_barrier(shared_address(&barriers[1]));
    load(slot, 0);
  }
  __syncwarp();
  const HeadParams<2> params(a, channel);
  const auto exponents_of = [&](int of) {  // of rows 2 lane and 2 lane + 1
    return reinterpret_cast<char2*>(a.exponents + of * a.exponents_stride) + (head * kN / 2 + lane);
  };
  auto next_elapsed = static_cast<uint32_t>(a.elapsed[slot]);
  char2 next_exponents = *exponents_of(slot);
  // Its rows in an order in which no eight lanes meet in a bank: 0 2 4 6 9 11 13 15 ... first.
  const int swap = (lane >> 2) & 1;
  wait_for_kernel_before();
  HeadInputs<T, 2> inputs;
  inputs.fetch(a, place(row));
  for (int n = 0; row < a.rows; row += step, ++n) {
    const int64_t at = place(row);
    const int next_row = min(row + step, a.rows - 1), next_slot = a.slots[next_row];
    const uint32_t elapsed = next_elapsed;
    const char2 before = next_exponents;
    const Channels<T, 2> own(a, params, inputs, at);
    const float squares = warp_sum(own.squares), bonus = warp_sum(own.bonus);
    const float inverse = rsqrtf(fmaxf(squares, 1e-24f));
    float w[2], z[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      z[e] = own.u[e] * inverse;
      w[e] = fp16::decay_of<true>(own.decay[e], dither_phase(elapsed, static_cast<uint32_t>(head),
                                                             static_cast<uint32_t>(2 * lane + e)));
    }
    vectors[0][lane] = __floats2half2_rn(own.r[0], own.r[1]);
    vectors[1][lane] = __floats2half2_rn(w[0], w[1]);
    vectors[2][lane] = __floats2half2_rn(own.k[0], own.k[1]);
    vectors[3][lane] = __floats2half2_rn(-z[0], -z[1]);
    vectors[4][lane] = __floats2half2_rn(z[0] * own.rate[0], z[1] * own.rate[1]);
    const auto vector = [&](int i) { return reinterpret_cast<const __half*>(vectors[i]); };
    wait_barrier(shared_address(&barriers[n & 1]), static_cast<uint32_t>(n >> 1 & 1));
    if (lane == 0) {
      wait_tiles_read();
      if (row + step < a.rows) load(next_slot, n + 1);
    }
    __syncwarp();
    inputs.fetch(a, place(next_row));
    next_elapsed = static_cast<uint32_t>(a.elapsed[next_slot]);
    next_exponents = *exponents_of(next_slot);
    TwoRows rows;
    uint4* const tile = packs[n & 1];
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int q = 0; q < fp16::kPacks; ++q)
        *reinterpret_cast<fp16::Pack*>(&rows.of[e].s[4 * q]) =
            fp16::load_pack(&tile[swizzled(2 * lane + (e ^ swap), q)]);
    int exponent[2] = {swap != 0 ? before.y : before.x, swap != 0 ? before.x : before.y};
    const __half v[2] = {
        fp16::row_value(__float2half_rn((swap != 0 ? own.v[1] : own.v[0]) * a.scale),
                        power_of_two(-exponent[0])),
        fp16::row_value(__float2half_rn((swap != 0 ? own.v[0] : own.v[1]) * a.scale),
                        power_of_two(-exponent[1]))};
    __half u[2], half_y[2];
    rows.dot(vector(3), u);
    rows.advance(u, v, vector(1), vector(2), vector(4), vector(0), half_y);
    const float y[2] = {__half2float(half_y[0]) * (a.inverse * power_of_two(exponent[0])),
                        __half2float(half_y[1]) * (a.inverse * power_of_two(exponent[1]))};
    if (exponent_due(elapsed)) {
      const bool first = fp16::follow(rows.of[0], exponent[0]),
                 second = fp16::follow(rows.of[1], exponent[1]);
      if (first || second)
        *exponents_of(slot) =
            make_char2(static_cast<signed char>(swap != 0 ? exponent[1] : exponent[0]),
                       static_cast<signed char>(swap != 0 ? exponent[0] : exponent[1]));
    }
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int q = 0; q < fp16::kPacks; ++q)
        fp16::store_pack(&tile[swizzled(2 * lane + (e ^ swap), q)],
                         *reinterpret_cast<const fp16::Pack*>(&rows.of[e].s[4 * q]));
    publish_shared();
    __syncwarp();
    if (lane == 0) {
      store_tile(states, false, shared_address(tile), 0, head * kN, slot);
      commit_tiles();
    }
    const float mean = warp_sum(y[0] + y[1]) * (1.0f / kN);
    const float centred[2] = {(swap != 0 ? y[1] : y[0]) - mean, (swap != 0 ? y[0] : y[1]) - mean};
    const float variance =
        warp_sum(centred[0] * centred[0] + centred[1] * centred[1]) * (1.0f / kN);
    own.finish(a, params, at, centred, variance, bonus);
    slot = next_slot;
  }
  if (lane == 0) wait_tiles();
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

/// f16 states of a layer: boxes of a head's 64 rows of 64, (column, row of all heads, slot).
cudaError_t describe_states(CUtensorMap& map, const Heads& a) {
  return describe_vector(map, a.wkv, a.all_slots, a.heads * kN, kN, kN, a.wkv_stride);
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

void launch_mix(DType type, const Mix& a, bool overlap, cudaStream_t stream) {
  RWKV_ASSERT(a.width % 8 == 0 && a.width <= 8 * kMixThreads, "width ", a.width);
  const auto threads = static_cast<unsigned>((a.width / 8 + 31) / 32 * 32);
  by_half(type, [&]<class T>(T) { RWKV_CUDA(mix_as<T>(a, threads, overlap, stream)); });
  RWKV_LAUNCHED("mix of a batch", stream);
}

void launch_heads(DType type, const Heads& a, bool overlap, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(a.rows * a.heads);
  by_half(type, [&]<class T>(T) {
    if (a.half_state) {
      CUtensorMap states;
      RWKV_CUDA(describe_states(states, a));
      const auto most = static_cast<unsigned>(std::max(a.multiprocessors * kHeadBlocks, a.heads));
      RWKV_CUDA(launch_dependent(half_heads_kernel<T>, std::min(blocks, most), 32, 0, 1, overlap,
                                 stream, a, states));
    } else {
      RWKV_CUDA(launch_dependent(heads_kernel<T>, blocks, kN, 0, 1, overlap, stream, a));
    }
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
