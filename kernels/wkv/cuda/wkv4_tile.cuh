#pragma once
/// What the scans of WKV-4 share: a block takes 32 channels (a warp's lanes) and a tile of tokens,
/// kTime threads of a channel along time. Elements of threads are scanned inside the block; blocks
/// pass elements on through global memory.

#include "kernels/wkv/cuda/wkv4_common.cuh"

namespace rwkv::cuda::wkv4 {

inline constexpr int kLanes = 32;  ///< channels of a block

template <class State>
inline constexpr int kWords = static_cast<int>(sizeof(State) / sizeof(float));

/// A state (Past or Future with a plain scale) as numbers.
template <class State>
struct Words {
  float w[kWords<State>];
  __device__ __forceinline__ explicit Words(const State& s) { memcpy(w, &s, sizeof s); }
  __device__ __forceinline__ Words() {}
  __device__ __forceinline__ State state() const {
    State s;
    memcpy(&s, w, sizeof s);
    return s;
  }
};

/// Elements of a tile, [order][channel]. The padding keeps both ways of reading free of bank
/// conflicts: by a warp along channels, and by groups of kTime lanes along the order.
template <class State, int kTime>
struct Board {
  float cell[kWords<State>][kTime][kLanes + kLanes / kTime];
  float total[kWords<State>][kLanes], carry[kWords<State>][kLanes];
};

/// A scan over the threads of each channel, thread `order` holding the run of `tokens` tokens after
/// those of order - 1 (in the direction of the scan). Returns what all before it add up to;
/// `total`: all. `decay`: d of the block's channels. Two barriers; no other is needed between
/// calls.
template <class State, int kTime>
__device__ __forceinline__ State scan_tile(Board<State, kTime>& board, const float* decay,
                                           int order, const State& mine, float tokens,
                                           State& total) {
  constexpr int kN = kWords<State>;
  const int lane = static_cast<int>(threadIdx.x), row = static_cast<int>(threadIdx.y);
  const Words<State> own(mine);
#pragma unroll
  for (int i = 0; i < kN; ++i) board.cell[i][order][lane] = own.w[i];
  __syncthreads();
  // kTime neighbouring lanes per channel.
  const int channel = kLanes / kTime * row + lane / kTime, time = lane % kTime;
  const float d = decay[channel];
  Words<State> x;
#pragma unroll
  for (int i = 0; i < kN; ++i) x.w[i] = board.cell[i][time][channel];
#pragma unroll
  for (int off = 1; off < kTime; off *= 2) {
    Words<State> before;
#pragma unroll
    for (int i = 0; i < kN; ++i) before.w[i] = __shfl_up_sync(0xffffffffu, x.w[i], off, kTime);
    if (time < off) continue;
    State joined = before.state();
    joined.join(x.state(), static_cast<float>(off) * tokens, d);
    x = Words<State>(joined);
  }
  Words<State> ahead{State{}};
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    const float w = __shfl_up_sync(0xffffffffu, x.w[i], 1, kTime);
    if (time > 0) ahead.w[i] = w;
    board.cell[i][time][channel] = ahead.w[i];
    if (time == kTime - 1) board.total[i][channel] = x.w[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    ahead.w[i] = board.cell[i][order][lane];
    x.w[i] = board.total[i][lane];
  }
  total = x.state();
  return ahead.state();
}

// --- elements that blocks pass on ---------------------------------------------------------------

/// Three numbers and a mark that they are there, written and read as one.
struct alignas(16) Mail {
  float w[3];
  unsigned there;
};
template <class State>
inline constexpr int kMails = (kWords<State> + 2) / 3;

__device__ __forceinline__ void send(Mail* to, const Mail& mail) {
  unsigned long long low, high;
  memcpy(&low, &mail, 8);
  memcpy(&high, reinterpret_cast<const char*>(&mail) + 8, 8);
  asm volatile(
      "{ .reg .b128 x; mov.b128 x, {%1, %2}; st.relaxed.gpu.global.b128 [%0], x; }" ::"l"(to),
      "l"(low), "l"(high)
      : "memory");
}
__device__ __forceinline__ Mail receive(const Mail* from) {
  unsigned long long low, high;
  asm volatile("{ .reg .b128 x; ld.relaxed.gpu.global.b128 x, [%2]; mov.b128 {%0, %1}, x; }"
               : "=l"(low), "=l"(high)
               : "l"(from)
               : "memory");
  Mail mail;
  memcpy(&mail, &low, 8);
  memcpy(reinterpret_cast<char*>(&mail) + 8, &high, 8);
  return mail;
}

/// Tiles whose elements a block combines by itself. Who combines what is fixed, so that results do
/// not depend on who is early: a tile takes the carry at the beginning of its group and the
/// elements of the tiles before it in the group.
inline constexpr int kGroup = 32;

/// Memory that blocks talk through, zero before a launch.
struct Look {
  Mail* carries;   ///< (groups of tiles, B, kMails, C): what all up to the group's end add up to
  Mail* elements;  ///< (tiles, B, kMails, C); not used for groups of 1
};
inline int groups_of(int tiles, int group) {
  return (tiles + group - 1) / group;
}
template <class State>
size_t look_bytes(const Wkv4Shape& s, int tiles, int group) {
  if (group == 0) return 0;
  const size_t mails =
      static_cast<size_t>(s.batch) * kMails<State> * static_cast<size_t>(s.channels);
  return sizeof(Mail) * mails *
         static_cast<size_t>(groups_of(tiles, group) + (group > 1 ? tiles : 0));
}
template <class State>
Look look_at(void* memory, const Wkv4Shape& s, int tiles, int group) {
  auto* mails = static_cast<Mail*>(memory);
  const size_t row = static_cast<size_t>(s.batch) * kMails<State> * static_cast<size_t>(s.channels);
  return {mails, mails + row * static_cast<size_t>(groups_of(tiles, group))};
}

/// The channel's place in the mail of one tile or group.
template <class State>
__device__ __forceinline__ int64_t mail_at(const Wkv4Shape& s, int index, int b, int c) {
  return (static_cast<int64_t>(index) * s.batch + b) * kMails<State> * s.channels + c;
}
template <class State>
__device__ __forceinline__ void send_state(Mail* to, int64_t channels, const State& state) {
  const Words<State> x(state);
#pragma unroll
  for (int m = 0; m < kMails<State>; ++m) {
    Mail mail{{0, 0, 0}, 1u};
#pragma unroll
    for (int i = 0; i < 3; ++i)
      if (3 * m + i < kWords<State>) mail.w[i] = x.w[3 * m + i];
    send(to + m * channels, mail);
  }
}
template <class State>
__device__ __forceinline__ State receive_state(const Mail* from, int64_t channels) {
  Words<State> x;
#pragma unroll
  for (int m = 0; m < kMails<State>; ++m) {
    Mail mail = receive(from + m * channels);
    while (mail.there == 0) mail = receive(from + m * channels);
#pragma unroll
    for (int i = 0; i < 3; ++i)
      if (3 * m + i < kWords<State>) x.w[3 * m + i] = mail.w[i];
  }
  return x.state();
}

/// What all tiles before `tile` (in the direction of the scan) add up to; `total`: this one's
/// element, of `tokens` tokens; `first`: what lies before tile 0. kTogether: 1 or kGroup. Passes on
/// what others wait for. Called by all threads of a block. Blocks wait for blocks with a lower
/// index only: those start earlier, on which CUB's scans rely as well.
template <int kTogether, class State, int kTime>
__device__ __forceinline__ State look_back(const Look& look, const Wkv4Shape& s, int tiles,
                                           int tile, int b, int c, Board<State, kTime>& board,
                                           const float* decay, int order, const State& total,
                                           float tokens, const State& first) {
  const int lane = static_cast<int>(threadIdx.x);
  const bool real = c < s.channels;
  const int64_t channels = s.channels;
  const auto carry_at = [&](int group) { return look.carries + mail_at<State>(s, group, b, c); };
  const auto element_at = [&](int i) { return look.elements + mail_at<State>(s, i, b, c); };
  State carry;
  if constexpr (kTogether == 1) {
    if (order == 0) {
      State got = first;
      if (tile > 0 && real) got = receive_state<State>(carry_at(tile - 1), channels);
      carry = got;
      if (tile + 1 < tiles && real) {
        got.join(total, tokens, decay[lane]);
        send_state(carry_at(tile), channels, got);
      }
      const Words<State> x(carry);
#pragma unroll
      for (int i = 0; i < kWords<State>; ++i) board.carry[i][lane] = x.w[i];
    }
    __syncthreads();
    Words<State> x;
#pragma unroll
    for (int i = 0; i < kWords<State>; ++i) x.w[i] = board.carry[i][lane];
    return x.state();
  } else {
    constexpr int kItems = kGroup / kTime;
    const int within = tile % kGroup, begin = tile - within;
    const bool passes_on = within == kGroup - 1 && tile + 1 < tiles;
    if (order == 0 && real && within < kGroup - 1) send_state(element_at(tile), channels, total);
    // The last of kGroup places is the tile before this one, the one before the elements the carry.
    State mine;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int place = order * kItems + i - (kGroup - 1 - within);
      State got;
      if (place == 0 && tile < kGroup) got = first;
      if (place == 0 && tile >= kGroup && real)
        got = receive_state<State>(carry_at(tile / kGroup - 1), channels);
      if (place > 0 && real) got = receive_state<State>(element_at(begin + place - 1), channels);
      if (i == 0)
        mine = got;
      else
        mine.join(got, tokens, decay[lane]);
    }
    scan_tile<State, kTime>(board, decay, order, mine, static_cast<float>(kItems) * tokens, carry);
    if (order == 0 && real && passes_on) {
      State all = carry;
      all.join(total, tokens, decay[lane]);
      send_state(carry_at(tile / kGroup), channels, all);
    }
    return carry;
  }
}

/// A block's chain: 32 channels of a sequence.
struct Place {
  int b, c;
  bool real;  ///< the channel exists
  int64_t state;
  __device__ __forceinline__ Place(const Wkv4Shape& s, unsigned chain) {
    const unsigned groups = (static_cast<unsigned>(s.channels) + kLanes - 1) / kLanes;
    b = static_cast<int>(chain / groups);
    c = static_cast<int>(chain % groups * kLanes + threadIdx.x);
    real = c < s.channels;
    state = static_cast<int64_t>(b) * s.channels + c;
  }
};
__host__ __device__ inline unsigned chains_of(const Wkv4Shape& s) {
  return static_cast<unsigned>(s.batch) *
         ((static_cast<unsigned>(s.channels) + kLanes - 1) / kLanes);
}

/// x, as a number that the compiler knows nothing of: what is computed from it is computed where it
/// is needed, and not kept in registers from earlier on.
__device__ __forceinline__ int fresh(int x) {
  asm("" : "+r"(x));
  return x;
}

// Addresses and accesses of the loops over tokens in one instruction each; compiled from pointers
// they are three to five, most of them in registers that are scarce.
__device__ __forceinline__ uint64_t address(uint64_t first, uint32_t stride, int i) {
  uint64_t at;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(at) : "r"(stride), "r"(i), "l"(first));
  return at;
}
/// Of a tensor that the kernel does not write.
__device__ __forceinline__ float fetch(const float*, uint64_t at) {
  float x;
  asm("ld.global.nc.f32 %0, [%1];" : "=f"(x) : "l"(at));
  return x;
}
__device__ __forceinline__ float fetch(const __nv_bfloat16*, uint64_t at) {
  uint16_t x;
  asm("ld.global.nc.u16 %0, [%1];" : "=h"(x) : "l"(at));
  return __uint_as_float(static_cast<uint32_t>(x) << 16);
}
__device__ __forceinline__ void store(float*, uint64_t at, float x) {
  asm volatile("st.global.f32 [%0], %1;" ::"l"(at), "f"(x));
}
__device__ __forceinline__ void store(__nv_bfloat16*, uint64_t at, float x) {
  const uint16_t bits = __bfloat16_as_ushort(__float2bfloat16(x));
  asm volatile("st.global.u16 [%0], %1;" ::"l"(at), "h"(bits));
}

/// Tokens of one channel from some place on.
template <class T>
struct Column {
  uint64_t first;
  uint32_t stride;  ///< bytes
  __device__ __forceinline__ Column(const void* tensor, int64_t at, int channels)
      : first(reinterpret_cast<uint64_t>(tensor) + static_cast<uint64_t>(at) * sizeof(T)),
        stride(static_cast<uint32_t>(channels) * static_cast<uint32_t>(sizeof(T))) {}
  __device__ __forceinline__ float get(int i) const {
    return fetch(static_cast<const T*>(nullptr), address(first, stride, i));
  }
  __device__ __forceinline__ void set(int i, float x) const {
    store(static_cast<T*>(nullptr), address(first, stride, i), x);
  }
};
/// A thread's first n of kOwn tokens of several tensors, all asked for at once; zeros beyond n.
template <int kOwn, class T, class... More>
__device__ __forceinline__ void load_some(int n, const Column<T>& from, float (&to)[kOwn],
                                          More&&... more) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) to[i] = i < n ? from.get(i) : 0.0f;
  if constexpr (sizeof...(more) > 0) load_some<kOwn>(n, more...);
}
template <int kOwn, class T, class... More>
__device__ __forceinline__ void load_all(const Column<T>& from, float (&to)[kOwn], More&&... more) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) to[i] = from.get(i);
  if constexpr (sizeof...(more) > 0) load_all<kOwn>(more...);
}
template <int kOwn, class... Pairs>
__device__ __forceinline__ void load_tokens(int n, Pairs&&... pairs) {
  if (n == kOwn)
    load_all<kOwn>(pairs...);
  else
    load_some<kOwn>(fresh(n), pairs...);
}

/// Keys to base 2; kNoScale beyond n, so that those tokens have no weight.
template <int kOwn>
__device__ __forceinline__ void scale_keys(int n, float (&k)[kOwn]) {
  n = fresh(n);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) k[i] = i < n ? key_of(k[i]) : kNoScale;
}

/// Saved for the backward: the state ahead of every kSavedEvery tokens, rows a, b, scale and, for
/// cumsum, the number of these tokens that were computed by the recurrence.
inline constexpr int kSavedEvery = 8;
__host__ __device__ inline int saved_rows(const Wkv4Shape& s) {
  return s.sums ? 4 : 3;
}
__device__ __forceinline__ int64_t saved_at(const Wkv4Shape& s, int b, int t, int c) {
  const int segments = (s.tokens + kSavedEvery - 1) / kSavedEvery;
  return (static_cast<int64_t>(b) * segments + t / kSavedEvery) * saved_rows(s) * s.channels + c;
}

/// Sums of a channel over its threads, in order: by d to out, by u `stride` further on.
template <int kTime>
__device__ __forceinline__ void sum_channels(float (&fold)[2][kTime][kLanes], float sum_d,
                                             float sum_u, bool real, float* out, int64_t stride) {
  const int lane = static_cast<int>(threadIdx.x), row = static_cast<int>(threadIdx.y);
  fold[0][row][lane] = sum_d;
  fold[1][row][lane] = sum_u;
  __syncthreads();
  if (row >= 2 || !real) return;
  double sum = 0;
  for (int i = 0; i < kTime; ++i) sum += static_cast<double>(fold[row][i][lane]);
  out[row * stride] = static_cast<float>(sum);
}

}  // namespace rwkv::cuda::wkv4
