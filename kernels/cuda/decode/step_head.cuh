#pragma once
/// What the block of a head does between the products before and behind it: low-rank maps, key
/// preparation, value mix, the WKV step, group norm, bonus and gate.

#include "kernels/cuda/decode/step_kernel.cuh"

namespace rwkv::cuda::decode {

/// Where pack q of row i of an f16 state lies in shared memory: neighbouring rows in other banks.
__device__ __forceinline__ int swizzled(int i, int q) {
  return i * fp16::kPacks + (q ^ (i % fp16::kPacks));
}

/// fp16::follow with the thread's row in shared memory, pack by pack, because registers are few. To
/// the state.
template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::follow(const fp16::Pack* packs,
                                                                    std::byte* state) {
  unsigned most = 0;
#pragma unroll 1
  for (int q = 0; q < fp16::kPacks; ++q) {
    const fp16::Pack p = packs[swizzled(t_, q)];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      most = __vmaxu2(most, *reinterpret_cast<const unsigned*>(&p.pair[i]) & 0x7fff7fffu);
  }
  const auto bits = static_cast<unsigned short>(max(most & 0xffffu, most >> 16));
  int8_t& exponent = head_memory_.exponents[t_];
  const int change = exponent_change(float_bits(__half2float(__ushort_as_half(bits))), exponent);
  if (change != 0) exponents_of(state)[t_] = static_cast<int8_t>(exponent + change);
  const __half2 factor = __float2half2_rn(power_of_two(-change));
#pragma unroll 1
  for (int q = 0; q < fp16::kPacks; ++q) {
    fp16::Pack p = packs[swizzled(t_, q)];
#pragma unroll
    for (int i = 0; i < 4; ++i) p.pair[i] = __hmul2_rn(p.pair[i], factor);
    fp16::store_pack(state + (t_ * kN + 8 * q) * 2, p);
  }
}

/// The head's r, k and v, and the low-rank vectors, activated, as they come in.
template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::get_products(int base) {
  HeadMemory& m = head_memory_;
  const int low_at = l_.section[3], lows = l_.in_rows() - low_at, all = lows + 3 * kN;
  constexpr int kAtOnce = 1024 / kThreads;
  // Of a value: where it lies in the exchange.
  const auto place_of = [&](int i) {
    const int c = i - lows;
    return 8u * static_cast<uint32_t>(c < 0 ? low_at + i : c / kN * d_ + base + c % kN);
  };
  wait_for_one(a_.in, place_of(min(t_, all - 1)), tag_, a_.nap);
#pragma unroll 1
  for (int first = t_; first < all; first += kAtOnce * kThreads) {
    uint2 raw[kAtOnce];
    const auto index = [&](int n) { return min(first + n * kThreads, all - 1); };
    for (int looks = 0;; ++looks) {
      bool there = true;
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) raw[n] = look_one(a_.in, place_of(index(n)));
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) there = there && raw[n].y == tag_;
      if (there) break;
      if (looks > kMostLooks) __trap();
      if (a_.nap > 0) __nanosleep(a_.nap);
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int i = index(n), c = i - lows;
      const float x = __uint_as_float(raw[n].x);
      if (c >= 0) {
        m.rkv[c] = x;
        continue;
      }
      // Which matrix, and where in it; a step's elements lie as `multiply` wants them.
      int matrix = 0, padded = 0, begin = 0;
#pragma unroll
      for (int j = 1; j < rwkv::decode::kLowRanks; ++j)
        if (i >= l_.section[3 + j] - low_at) {
          matrix = j;
          padded += l_.padded_rank(j - 1);
          begin = l_.section[3 + j] - low_at;
        }
      const float y = matrix == 0 ? tanh_of(x) : matrix == 3 ? sigmoid(x) : x;
      constexpr int kStep = 8 * kPack;
      const int e = i - begin;
      low_[padded + e / kStep * kStep + place<T>(e % kStep, kStep)] = y;
    }
  }
}

/// The row t of an f16 state in shared memory takes in the token: fp16::dot and fp16::advance pack
/// by pack.
template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::advance_half(fp16::Pack* packs,
                                                                          std::byte* state) {
  HeadMemory& m = head_memory_;
  const int exponent = m.exponents[t_];
  const __half v = fp16::row_value(__float2half_rn(m.mix[t_] * a_.scale), power_of_two(-exponent));
  __half2 sum = __float2half2_rn(0.0f), out = sum;
#pragma unroll 4
  for (int q = 0; q < fp16::kPacks; ++q) {
    const fp16::Pack row = packs[swizzled(t_, q)], a = fp16::load_pack(m.ha + 8 * q);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = __hfma2(a.pair[i], row.pair[i], sum);
  }
  const __half2 u = __half2half2(fp16::joined(sum)), value = __half2half2(v);
  const bool due = exponent_due(sequence_.elapsed);
#pragma unroll 2
  for (int q = 0; q < fp16::kPacks; ++q) {
    fp16::Pack row = packs[swizzled(t_, q)];
    const fp16::Pack w = fp16::load_pack(m.hw + 8 * q), k = fp16::load_pack(m.hk + 8 * q),
                     b = fp16::load_pack(m.hb + 8 * q), r = fp16::load_pack(m.hr + 8 * q);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2 old = row.pair[i];
      row.pair[i] = __hfma2(old, w.pair[i], __hfma2(k.pair[i], value, __hfma2(u, b.pair[i], old)));
      out = __hfma2(r.pair[i], row.pair[i], out);
    }
    if (due)
      packs[swizzled(t_, q)] = row;
    else
      fp16::store_pack(state + (t_ * kN + 8 * q) * 2, row);
  }
  m.y[t_] = __half2float(fp16::joined(out)) * (a_.inverse * power_of_two(exponent));
  if (due) follow(packs, state);
}

template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::lora(int layer) {
  using namespace rwkv::decode;
  begin_stage();
  HeadMemory& m = head_memory_;
  const int base = head_ * kN, channel = 4 * warp() + lane() / 8, sub = lane() % 8;
  std::byte* const state =
      sequence_.wkv + static_cast<int64_t>(layer) * (l_.shape.heads() * kStateBytes);
  // The state and the vectors, ahead of the wait.
  float2 s[4];
  auto* const packs = reinterpret_cast<fp16::Pack*>(x_);  // an f16 state on its way
  if constexpr (kHalfState) {
    static_assert(fp16::kStatePacks == kThreads);
    copy_pack(packs + swizzled(t_ / fp16::kPacks, t_ % fp16::kPacks), state + 16 * t_);
    if (t_ < kN / 16) copy_pack(m.exponents + 16 * t_, exponents_of(state) + 16 * t_);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      s[i] = RawPair<float>::get(reinterpret_cast<const float*>(state) + (4 * warp() + i) * kN +
                                 2 * lane());
  }
  float* const vectors = x_ + kStateFloats;  // the head's part of those from kW0 to kLnXBias
  if (t_ < kHeadVectors * kN / 4)
    copy_pack(vectors + 4 * t_, param(layer, kW0 + t_ / (kN / 4)) + base + 4 * (t_ % (kN / 4)));
  const auto vector = [&](int p) { return vectors + (p - kW0) * kN; };

  get_products(base);
  copies_done();
  sync();
  stamp(layer, 2);

  // Some steps at a time, so that their loads do not wait for each other.
  constexpr int kBatch = 4;
  float low[kLowRanks] = {};
  const int ends[] = {l_.steps[0], l_.steps[0] + l_.steps[1],
                      l_.steps[0] + l_.steps[1] + l_.steps[2], l_.all_steps};
  for (int first = 0; first < l_.all_steps; first += kBatch) {
    uint4 raw[kBatch];
    float sum[kBatch];
#pragma unroll
    for (int n = 0; n < kBatch; n += kSlotPasses)
      if (first + n < l_.all_steps) {
        const std::byte* const piece = stream_.wait() + 16 * t_;
#pragma unroll
        for (int i = 0; i < kSlotPasses; ++i)
          raw[n + i] = *reinterpret_cast<const uint4*>(piece + i * kPassBytes);
        stream_.release();
      }
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      Sum part;
      if (first + n < l_.all_steps)
        multiply<T>(raw[n], low_ + (first + n) * 8 * kPack, sub, 8 * kPack, part);
      sum[n] = part.all();
    }
#pragma unroll
    for (int n = 0; n < kBatch; ++n)
#pragma unroll
      for (int i = 0; i < kLowRanks; ++i) {
        const int begin = i == 0 ? 0 : ends[i - 1];
        low[i] += first + n >= begin && first + n < ends[i] ? sum[n] : 0.0f;
      }
  }
#pragma unroll
  for (int i = 0; i < kLowRanks; ++i)
#pragma unroll
    for (int o = 4; o > 0; o >>= 1) low[i] += __shfl_xor_sync(0xffffffffu, low[i], o);
  if (sub == 0) {
    m.decay[channel] = vector(kW0)[channel] + low[0];
    m.rate[channel] = sigmoid(vector(kA0)[channel] + low[1]);
    m.gate[channel] = low[3];
    float v = m.rkv[2 * kN + channel];
    if (layer == 0)
      m.v_first[channel] = v;
    else
      v += (m.v_first[channel] - v) * sigmoid(vector(kV0)[channel] + low[2]);
    m.mix[channel] = v;  // the value after the mix
  }
  sync();

  // Every warp prepares all of the head: two columns a lane.
  const int c = 2 * lane();
  const float2 r = *reinterpret_cast<const float2*>(m.rkv + c),
               k0 = *reinterpret_cast<const float2*>(m.rkv + kN + c),
               rate = *reinterpret_cast<const float2*>(m.rate + c),
               decay = *reinterpret_cast<const float2*>(m.decay + c),
               key_scale = *reinterpret_cast<const float2*>(vector(kKeyScale) + c),
               key_rate = *reinterpret_cast<const float2*>(vector(kKeyRate) + c),
               bonus = *reinterpret_cast<const float2*>(vector(kBonus) + c);
  const float2 u = {k0.x * key_scale.x, k0.y * key_scale.y};
  const float inverse = 1.0f / fmaxf(sqrtf(warp_sum(u.x * u.x + u.y * u.y)), 1e-12f);
  const float2 a = {-u.x * inverse, -u.y * inverse};
  const float2 b = {-a.x * rate.x, -a.y * rate.y};
  const float2 k = {k0.x * (1.0f + (rate.x - 1.0f) * key_rate.x),
                    k0.y * (1.0f + (rate.y - 1.0f) * key_rate.y)};
  const float beta = warp_sum(r.x * k.x * bonus.x + r.y * k.y * bonus.y);
  // Now: behind the last barrier others use x_ again.
  const float ln_weight = vector(kLnXWeight)[t_ % kN], ln_bias = vector(kLnXBias)[t_ % kN];
  if constexpr (kHalfState) {
    if (warp() == 0) {
      const uint32_t phase =
          dither_phase(sequence_.elapsed, static_cast<uint32_t>(head_), static_cast<uint32_t>(c));
      const auto pair = [&](__half* to, float p, float q) {
        *reinterpret_cast<__half2*>(to + c) = __floats2half2_rn(p, q);
      };
      pair(m.hr, r.x, r.y);
      pair(m.hk, k.x, k.y);
      pair(m.ha, a.x, a.y);
      pair(m.hb, b.x, b.y);
      pair(m.hw, fp16::decay_of<true>(decay.x, phase), fp16::decay_of<true>(decay.y, phase + 1u));
    }
    sync();
    if (t_ < kN) advance_half(packs, state);
  } else {
    constexpr float kScale = 0.6065306597126334f;
    const float2 w = {expf(-kScale * sigmoid(decay.x)), expf(-kScale * sigmoid(decay.y))};
    float sum[4], y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = warp_sum(s[i].x * a.x + s[i].y * a.y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float v = m.mix[4 * warp() + i];
      s[i].x = s[i].x * w.x + sum[i] * b.x + v * k.x;
      s[i].y = s[i].y * w.y + sum[i] * b.y + v * k.y;
      y[i] = warp_sum(s[i].x * r.x + s[i].y * r.y);
      *reinterpret_cast<float2*>(reinterpret_cast<float*>(state) + (4 * warp() + i) * kN + c) =
          s[i];
    }
    if (lane() < 4)
      m.y[4 * warp() + lane()] = lane() == 0   ? y[0]
                                 : lane() == 1 ? y[1]
                                 : lane() == 2 ? y[2]
                                               : y[3];
  }
  sync();
  if (t_ < kN) {  // two warps, each with the statistics of all rows
    const float p = m.y[lane()], q = m.y[lane() + 32];
    const float mean = warp_sum(p + q) * (1.0f / kN);
    const float variance =
        warp_sum((p - mean) * (p - mean) + (q - mean) * (q - mean)) * (1.0f / kN);
    const float normal = ((warp() == 0 ? p : q) - mean) * rsqrtf(variance + 64e-5f);
    const float y = normal * ln_weight + ln_bias + beta * m.mix[t_];
    put(a_.gated + base + t_, y * m.gate[t_], tag_);
  }
  stamp(layer, 3);
}

}  // namespace rwkv::cuda::decode
