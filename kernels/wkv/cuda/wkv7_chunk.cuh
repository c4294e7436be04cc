#pragma once
/// What forward and backward of the chunked WKV-7 share. One block walks a segment of one head in
/// steps of 32 tokens = 2 chunks of 16, with a warp for every 16 channels of the head size kN.
///
/// In the frame of a chunk's first token (c = sum of log decays since then):
///   R~ = r exp(c_t)   A~ = a exp(c_{t-1})   K~ = k exp(-c_t)   B~ = b exp(-c_t)   P = exp(c_16)
///   A_ab, A_ak = strictly causal A~ B~^T, A~ K~^T;  A_rb, A_rk = causal R~ B~^T, R~ K~^T
///   Tm = (I - A_ab)^-1, by forward substitution in fp32
/// In f16 (E = __half, forward only), exp(-c_16), up to 16384, would leave no room for k: there c
/// is counted from token 8, so that no factor leaves 1/128 to 128, and the state changes frames
/// twice. Every product is a 16 x 16 or 16 x kN tile in registers; the state's value rows are split
/// over the warps, 16 each, which therefore never exchange it.

#include "kernels/wkv/cuda/wgmma.cuh"
#include "kernels/wkv/cuda/wkv7_cuda.h"

namespace rwkv::cuda::chunk {

inline constexpr int kChunk = 16, kStep = 32;  // tokens

/// Sizes that follow from the head size.
template <int kN>
struct Head {
  static_assert(kN == 32 || kN == 64 || kN == 128);
  static constexpr int kWarps = kN / 16, kThreads = 32 * kWarps;
  static constexpr int kTiles = kN / 16;  // 16 x 16 tiles side by side
  // Heads of 64 use warpgroup products, which read swizzled rows (wgmma.cuh); the others mma.sync
  // and rows padded so that ldmatrix meets no bank conflicts.
  static constexpr bool kGroup = kN == 64;
  static constexpr int kRowBytes = kGroup ? 2 * kN : 2 * (kN + 8);
  static constexpr int kRowsWords = kStep * kRowBytes / 16;  // 16-byte words of a step's rows
  static constexpr int kExpRow = kN + 8;                     // floats of a row of exp(c)
  static constexpr int kStateFloats = kN * kN;
  static constexpr int kCheckpointWords = kN * kN / 2;  // bf16 state, as the lanes hold it
  // Blocks per multiprocessor that the kernels are compiled for: where blocks are few they get more
  // registers.
  static constexpr int kForwardFew = kN == 32 ? 6 : kN == 64 ? 3 : 1;
  static constexpr int kForwardMany = kN == 32 ? 8 : kN == 64 ? 4 : 2;
  static constexpr int kBackwardFew = kN == 32 ? 4 : kN == 64 ? 2 : 1;
  static constexpr int kBackwardMany = kN == 32 ? 5 : kN == 64 ? 3 : 1;
};

/// Byte offset of an element of a block of rows in shared memory.
template <int kN>
__device__ __forceinline__ uint32_t cell(int row, int column) {
  if constexpr (Head<kN>::kGroup)
    return static_cast<uint32_t>(row * 128 + (((column >> 3) ^ (row & 7)) << 4) + (column & 7) * 2);
  else
    return static_cast<uint32_t>(row * Head<kN>::kRowBytes + column * 2);
}
/// Moves an offset of the first 16 columns to the 16 columns of tile j.
template <int kN>
__device__ __forceinline__ uint32_t tile(uint32_t offset, int j) {
  const auto step = static_cast<uint32_t>(j * 32);
  return Head<kN>::kGroup ? offset ^ step : offset + step;
}

/// -exp(-1/2) log2(e): log2(decay) = kLog2Decay sigmoid(w)
inline constexpr float kLog2Decay = -0.8750387749145276f;
inline constexpr float kDecay = 0.60653065971263342f;
inline constexpr float kLog2E = 1.4426950408889634f;

/// 16 x 16 matrices of a chunk in shared memory, four 8 x 8 tiles of 128 bytes each.
/// "Rest": what rounding the matrix to bf16 lost. Tm stands for Tm - I.
enum Small { kTm, kTmRest, kAk, kAkRest, kRb, kRbRest, kRk, kRkRest, kSmalls };
inline constexpr int kSmallBytes = 512;
/// Row of the fp32 copy of A_ab that the substitution reads.
inline constexpr int kSolveRow = 20;

struct Inputs {
  const __nv_bfloat16 *r, *w, *k, *v, *a, *b;
};

/// What a thread prepares of r, w, k, a, b: 4 tokens, 4 channels.
struct Raw {
  uint2 r[4], w[4], k[4], a[4], b[4];
};

/// Where a thread stands in the preparation: warp -> (chunk, 32 channels), lane -> (4 of the
/// chunk's tokens, 4 channels).
template <int kN>
struct PrepPlace {
  int chunk, quad, token, channel;
  __device__ PrepPlace() {
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
    chunk = warp / (kN / 32);
    quad = lane >> 3;
    token = chunk * kChunk + quad * 4;
    channel = warp % (kN / 32) * 32 + (lane & 7) * 4;
  }
};

template <int kN, bool kR, bool kK, bool kW>
__device__ __forceinline__ void load_raw(Raw& raw, const Inputs& in, int64_t x0, int64_t stride,
                                         int tokens) {
  const PrepPlace<kN> p;
  int64_t at = x0 + p.token * stride + p.channel;
  const auto load_row = [&](int i) {
    const auto words = [&](const __nv_bfloat16* from) {
      return __ldg(reinterpret_cast<const uint2*>(from + at));
    };
    if constexpr (kW) raw.w[i] = words(in.w);
    raw.a[i] = words(in.a);
    raw.b[i] = words(in.b);
    if constexpr (kK) raw.k[i] = words(in.k);
    if constexpr (kR) raw.r[i] = words(in.r);
  };
  if (tokens >= kStep) {
#pragma unroll
    for (int i = 0; i < 4; ++i, at += stride) load_row(i);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i, at += stride) {
    if constexpr (kW) raw.w[i] = make_uint2(0, 0);
    raw.r[i] = raw.k[i] = raw.a[i] = raw.b[i] = make_uint2(0, 0);
    if (p.token + i < tokens) load_row(i);
  }
}

/// The same from swizzled rows in shared memory.
template <bool kR, bool kK>
__device__ __forceinline__ void load_raw(Raw& raw, uint32_t r, uint32_t w, uint32_t k, uint32_t a,
                                         uint32_t b) {
  const PrepPlace<64> p;
  const auto words = [](uint32_t at) {
    uint2 x;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at) : "memory");
    return x;
  };
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t at = cell<64>(p.token + i, p.channel);
    raw.w[i] = words(w + at);
    raw.a[i] = words(a + at);
    raw.b[i] = words(b + at);
    if constexpr (kK) raw.k[i] = words(k + at);
    if constexpr (kR) raw.r[i] = words(r + at);
  }
}

/// Shared memory of the prepared operands: 32 padded rows of bf16 each.
struct Tilde {
  uint32_t r, a, b, k;
};

template <class E>
__device__ __forceinline__ void store_scaled(uint32_t to, const uint2& x, const float (&by)[4]) {
  const uint32_t low = pack<E>(low_half<E>(x.x) * by[0], high_half<E>(x.x) * by[1]);
  const uint32_t high = pack<E>(low_half<E>(x.y) * by[2], high_half<E>(x.y) * by[3]);
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(low), "r"(high) : "memory");
}

/// Writes R~, A~, B~, K~ and P = exp(c_16), with kExp also exp(c_t). In f16 also `open`, what takes
/// columns of the state to the frame of token 8; P is then what takes them from there to the end.
template <int kN, bool kR, bool kK, bool kExp, int kExpRow = Head<kN>::kExpRow,
          class E = __nv_bfloat16>
__device__ __forceinline__ void prepare(const Raw& raw, int tokens, const Tilde& to, float* end,
                                        float* exp_c, float* open = nullptr) {
  const PrepPlace<kN> p;
  float c[4][4], before[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float scale = p.token + i < tokens ? kLog2Decay : 0.0f;
    const float w[4] = {low_half<E>(raw.w[i].x), high_half<E>(raw.w[i].x), low_half<E>(raw.w[i].y),
                        high_half<E>(raw.w[i].y)};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float sigmoid = reciprocal_fast(1.0f + exp2_fast(-kLog2E * w[j]));
      c[i][j] = i == 0 ? scale * sigmoid : c[i - 1][j] + scale * sigmoid;
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {  // sums of the quads before this one
    const float one = __shfl_up_sync(0xffffffffu, c[3][j], 8);
    const float own = c[3][j] + (p.quad >= 1 ? one : 0.0f);
    const float two = __shfl_up_sync(0xffffffffu, own, 16);
    before[j] = (p.quad >= 1 ? one : 0.0f) + (p.quad >= 2 ? two : 0.0f);
  }
  if constexpr (kIsHalf<E>) {
    float middle[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {  // c_8: the last token of the second quad
      middle[j] =
          __shfl_sync(0xffffffffu, c[3][j] + before[j], 8 + (static_cast<int>(threadIdx.x) & 7));
      before[j] -= middle[j];
    }
    if (p.quad == 1)
      *reinterpret_cast<float4*>(open + p.chunk * kN + p.channel) = make_float4(
          exp2_fast(middle[0]), exp2_fast(middle[1]), exp2_fast(middle[2]), exp2_fast(middle[3]));
  }
  float last[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) last[j] = exp2_fast(before[j]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t offset = cell<kN>(p.token + i, p.channel);
    float shrink[4], grow[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float x = c[i][j] + before[j];
      shrink[j] = exp2_fast(x);
      grow[j] = exp2_fast(-x);
    }
    if constexpr (kR) store_scaled<E>(to.r + offset, raw.r[i], shrink);
    store_scaled<E>(to.a + offset, raw.a[i], last);
    store_scaled<E>(to.b + offset, raw.b[i], grow);
    if constexpr (kK) store_scaled<E>(to.k + offset, raw.k[i], grow);
    if constexpr (kExp)
      *reinterpret_cast<float4*>(exp_c + (p.token + i) * kExpRow + p.channel) =
          make_float4(shrink[0], shrink[1], shrink[2], shrink[3]);
#pragma unroll
    for (int j = 0; j < 4; ++j) last[j] = shrink[j];
  }
  if (p.quad == 3)
    *reinterpret_cast<float4*>(end + p.chunk * kN + p.channel) =
        make_float4(last[0], last[1], last[2], last[3]);
}

/// Copies `tokens` rows (32, zeros beyond) of one vector to shared memory.
template <int kN>
__device__ __forceinline__ void copy_rows(uint32_t to, const __nv_bfloat16* from, int64_t x0,
                                          int64_t stride, int tokens) {
#pragma unroll
  for (int i = 0; i < kStep * kN / 8 / Head<kN>::kThreads; ++i) {
    const int piece = i * Head<kN>::kThreads + static_cast<int>(threadIdx.x);
    const int row = piece / (kN / 8), column = piece % (kN / 8) * 8;
    const bool there = row < tokens;
    copy_async16(to + cell<kN>(row, column), from + x0 + (there ? row * stride : 0) + column,
                 there);
  }
}

/// Keeps columns < row + inclusive of a 16 x 16 product.
__device__ __forceinline__ void keep_causal(float (&d)[2][4], int inclusive) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = (lane >> 2) + 8 * (e >> 1), column = half * 8 + (lane & 3) * 2 + (e & 1);
      if (column >= row + inclusive) d[half][e] = 0;
    }
}

__device__ __forceinline__ void store_small(uint32_t to, const Frag& f) {
  const uint32_t at = to + (threadIdx.x & 31u) * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) store_shared(at + i * 128, f.x[i]);
}

/// Tm - I = (I - A)^-1 - I for strictly lower A (16 x 16, its columns as rows of kSolveRow floats):
/// lane j solves column j. As soon as an entry is known it goes into all later ones, so that only
/// one fused multiply-add per entry has to wait.
template <class E>
__device__ __forceinline__ void solve_unit_lower(const float* a, uint32_t to) {
  const int lane = static_cast<int>(threadIdx.x) & 31, column = lane & 15;
  float x[kChunk];
#pragma unroll
  for (int row = 0; row < kChunk; ++row) x[row] = row == column ? 1.0f : 0.0f;
#pragma unroll
  for (int k = 0; k + 1 < kChunk; ++k) {
#pragma unroll
    for (int row = (k + 1) / 4 * 4; row < kChunk; row += 4) {
      const float4 f = *reinterpret_cast<const float4*>(a + k * kSolveRow + row);
      if (row > k) x[row] += f.x * x[k];
      if (row + 1 > k) x[row + 1] += f.y * x[k];
      if (row + 2 > k) x[row + 2] += f.z * x[k];
      x[row + 3] += f.w * x[k];
    }
  }
  // 8 x 8 tiles in the order (0,0), (8,0), (0,8), (8,8); lanes >= 16 write the lower rows.
  const uint32_t at =
      to + static_cast<uint32_t>((column >> 3) * 256 + (column & 7) * 2) + (lane >= 16 ? 128u : 0u);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = i + (lane >= 16 ? 8 : 0);
    const float value = lane >= 16 ? x[i + 8] : x[i];
    const float exact = row > column ? value : 0.0f;
    const uint32_t rounded = pack<E>(exact, 0.0f);
    const uint32_t rest = pack<E>(exact - low_half<E>(rounded), 0.0f);
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(at + i * 16), "h"(static_cast<uint16_t>(rounded))
                 : "memory");
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(at + i * 16 + (kTmRest - kTm) * kSmallBytes),
                 "h"(static_cast<uint16_t>(rest))
                 : "memory");
  }
}

/// Offsets of this lane's row in a 16 x 16 block that ldmatrix reads in the order "down" or
/// "across" (mma.cuh): of padded rows, and of a Small. store_frag_t writes its tiles "across".
template <int kN>
struct Lanes {
  uint32_t down, across, small_down, small_across;
  __device__ Lanes() {
    const uint32_t lane = threadIdx.x & 31u, row = lane & 7u, one = (lane >> 3) & 1u,
                   two = lane >> 4;
    down = cell<kN>(static_cast<int>(row + one * 8), static_cast<int>(two * 8));
    across = cell<kN>(static_cast<int>(row + two * 8), static_cast<int>(one * 8));
    small_down = lane * 16;
    small_across = row * 16 + one * 256 + two * 128;
  }
};

template <class E>
__device__ __forceinline__ void store_both(uint32_t to, Small which, const float (&d)[2][4]) {
  const Frag f = pack_frag<E>(d[0], d[1]);
  store_small(to + which * kSmallBytes, f);
  store_small(to + (which + 1) * kSmallBytes, pack_frag_rest<E>(d[0], d[1], f));
}

/// The 16 x 16 matrices of both chunks. Half of the warps -> chunk; among them the first one finds
/// A_ab and its inverse, and the others share the rest.
template <int kN, bool kR, bool kK, class E = __nv_bfloat16>
__device__ __forceinline__ void causal_products(const Tilde& t, uint32_t small, float* solve,
                                                const Lanes<kN>& lanes) {
  constexpr int kRoles = Head<kN>::kWarps / 2;
  const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31;
  const int chunk = warp / kRoles, role = warp % kRoles;
  const uint32_t rows = static_cast<uint32_t>(chunk * kChunk * Head<kN>::kRowBytes);
  const uint32_t down = rows + lanes.down, across = rows + lanes.across;
  small += static_cast<uint32_t>(chunk * kSmalls * kSmallBytes);
  if (role == 0) {
    float ab[2][4] = {};
#pragma unroll
    for (int j = 0; j < Head<kN>::kTiles; ++j)
      mma16<E>(ab, load_frag(t.a + tile<kN>(down, j)), load_frag(t.b + tile<kN>(across, j)));
    keep_causal(ab, 0);
    float* own = solve + chunk * kChunk * kSolveRow;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        own[(half * 8 + (lane & 3) * 2 + (e & 1)) * kSolveRow + (lane >> 2) + 8 * (e >> 1)] =
            ab[half][e];
    __syncwarp();
    solve_unit_lower<E>(own, small + kTm * kSmallBytes);
    if constexpr (kRoles > 1) return;
  }
  const bool do_rb = kR && (kRoles < 4 || role == 1), do_ak = kK && (kRoles < 4 || role == 2),
             do_rk = kR && kK && (kRoles < 4 || role == 3);
  float rb[2][4] = {}, rk[2][4] = {}, ak[2][4] = {};
#pragma unroll
  for (int j = 0; j < Head<kN>::kTiles; ++j) {
    const uint32_t left = tile<kN>(down, j), right = tile<kN>(across, j);
    Frag r, k;
    if (do_rb || do_rk) r = load_frag(t.r + left);
    if (do_ak || do_rk) k = load_frag(t.k + right);
    if (do_rb) mma16<E>(rb, r, load_frag(t.b + right));
    if (do_ak) mma16<E>(ak, load_frag(t.a + left), k);
    if (do_rk) mma16<E>(rk, r, k);
  }
  keep_causal(rb, 1);
  keep_causal(rk, 1);
  keep_causal(ak, 0);
  if (do_rb) store_both<E>(small, kRb, rb);
  if (do_ak) store_both<E>(small, kAk, ak);
  if (do_rk) store_both<E>(small, kRk, rk);
}

/// The products of the chains, whose left operand is in registers: with kGroup on the tensor cores'
/// own time between `begin` and `finish`, otherwise at once. Addresses are those of a block of 16
/// rows or of a Small.
template <int kN, class E = __nv_bfloat16>
struct Chain {
  static constexpr bool kGroup = Head<kN>::kGroup;
  static constexpr int kTiles = Head<kN>::kTiles;
  Lanes<kN> lanes;

  /// Ordinary stores to shared memory are over; a barrier follows.
  __device__ __forceinline__ static void publish() {
    if constexpr (kGroup) publish_shared();
  }
  __device__ __forceinline__ static void begin() {
    if constexpr (kGroup) wgmma_begin();
  }
  __device__ __forceinline__ static void commit() {
    if constexpr (kGroup) wgmma_commit();
  }
  /// Waits for all groups but the last kPending, one of which computed d.
  template <int kPending = 0, int kD>
  __device__ __forceinline__ static void finish(float (&d)[kD][4]) {
    if constexpr (kGroup) {
      wgmma_wait<kPending>();
      settle(d);
    }
  }
  template <int kPending>
  __device__ __forceinline__ static void wait() {
    if constexpr (kGroup) wgmma_wait<kPending>();
  }
  /// d (16 x 16 per warp) += state times the rows as columns.
  __device__ __forceinline__ void rows(float (&d)[2][4], const Frag (&state)[kTiles],
                                       uint32_t at) const {
    if constexpr (kGroup) {
      wgmma_rows<E>(d, state, at);
    } else {
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
        mma16<E>(d, state[j], load_frag(at + tile<kN>(lanes.across, j)));
    }
  }
  /// d (16 x kN per warp) += left times the rows.
  __device__ __forceinline__ void outer(float (&d)[kN / 8][4], const Frag& left,
                                        uint32_t at) const {
    if constexpr (kGroup) {
      wgmma_outer<E>(d, left, at);
    } else {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const Frag b = load_frag_t(at + tile<kN>(lanes.down, n));
        mma<E>(d[2 * n], left, b.x[0], b.x[1]);
        mma<E>(d[2 * n + 1], left, b.x[2], b.x[3]);
      }
    }
  }
  /// d (16 x 16 per warp) += left times the transpose of a Small; kTransposed: the Small itself.
  template <bool kTransposed>
  __device__ __forceinline__ void small(float (&d)[2][4], const Frag& left, uint32_t smalls,
                                        Small which) const {
    const uint32_t offset = which * kSmallBytes;
    if constexpr (kGroup)
      wgmma_small<kTransposed, E>(d, left, smalls, offset / 16);
    else if constexpr (kTransposed)
      mma16<E>(d, left, load_frag_t(smalls + offset + lanes.small_down));
    else
      mma16<E>(d, left, load_frag(smalls + offset + lanes.small_across));
  }
  /// x += (Tm - I) x for x (channels x tokens) transposed; kTransposed: with Tm transposed. Where
  /// keys repeat, neighbouring tokens nearly cancel here, so x and Tm enter as two numbers.
  template <bool kTransposed>
  __device__ __forceinline__ void apply_tm(float (&x)[2][4], uint32_t smalls) const {
    const Frag high = pack_frag<E>(x[0], x[1]), rest = pack_frag_rest<E>(x[0], x[1], high);
    begin();
    small<kTransposed>(x, high, smalls, kTmRest);
    small<kTransposed>(x, rest, smalls, kTm);
    small<kTransposed>(x, high, smalls, kTm);
  }
};

/// This warp's number among those that share a state.
template <int kWarps>
__device__ __forceinline__ int warp_in_group() {
  return static_cast<int>(threadIdx.x >> 5) % kWarps;
}

/// 16 rows of a state: accumulators of kN / 8 tiles of 16 x 8.
template <int kN>
using StateRows = float[kN / 8][4];

template <int kTiles>
__device__ __forceinline__ void scale_columns(float (&s)[kTiles][4], const float* end) {
  const int q = static_cast<int>(threadIdx.x) & 3;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const float2 p = *reinterpret_cast<const float2*>(end + n * 8 + q * 2);
    s[n][0] *= p.x;
    s[n][1] *= p.y;
    s[n][2] *= p.x;
    s[n][3] *= p.y;
  }
}

/// Reads, writes or adds to this warp's 16 rows of an fp32 state in memory.
template <int kTiles>
__device__ __forceinline__ void load_state(float (&s)[kTiles][4], const float* from) {
  constexpr int kN = kTiles * 8;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = warp_in_group<kTiles / 2>();
  from += (warp * 16 + (lane >> 2)) * kN + (lane & 3) * 2;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const float2 upper = *reinterpret_cast<const float2*>(from + n * 8);
    const float2 lower = *reinterpret_cast<const float2*>(from + n * 8 + 8 * kN);
    s[n][0] = upper.x;
    s[n][1] = upper.y;
    s[n][2] = lower.x;
    s[n][3] = lower.y;
  }
}
template <int kTiles>
__device__ __forceinline__ void store_state(const float (&s)[kTiles][4], float* to,
                                            bool add = false) {
  constexpr int kN = kTiles * 8;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = warp_in_group<kTiles / 2>();
  to += (warp * 16 + (lane >> 2)) * kN + (lane & 3) * 2;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      float2* at = reinterpret_cast<float2*>(to + n * 8 + lower * 8 * kN);
      float2 x = make_float2(s[n][2 * lower], s[n][2 * lower + 1]);
      if (add) x = make_float2(x.x + at->x, x.y + at->y);
      *at = x;
    }
}
template <int kTiles>
__device__ __forceinline__ void identity_state(float (&s)[kTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = warp_in_group<kTiles / 2>();
  const int row = warp * 16 + (lane >> 2), column = (lane & 3) * 2;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      s[n][e] = row + 8 * (e >> 1) == column + n * 8 + (e & 1) ? 1.0f : 0.0f;
}

/// A transposed 16 x 16 product (rows = channels, columns = tokens) as rows of tokens.
__device__ __forceinline__ Frag transpose_frag(const Frag& f) {
  return {{transpose8(f.x[0]), transpose8(f.x[2]), transpose8(f.x[1]), transpose8(f.x[3])}};
}

/// Segments are whole steps; the last one may be shorter.
struct Plan {
  int steps, segments, steps_per_segment;
  int streams;
  size_t state_floats;
  explicit Plan(const Wkv7Shape& s)
      : streams(s.batch * s.heads),
        state_floats(static_cast<size_t>(s.head_size) * static_cast<size_t>(s.head_size)) {
    steps = (s.tokens + kStep - 1) / kStep;
    const int wanted = s.segments < 1 ? 1 : (s.segments < steps ? s.segments : steps);
    steps_per_segment = wanted > 0 ? (steps + wanted - 1) / wanted : 1;
    segments = steps > 0 ? (steps + steps_per_segment - 1) / steps_per_segment : 1;
  }
  /// From this many heads on, walking whole heads takes less time than finding the segments'
  /// operators. The forward then has no segments; the backward first walks its chain of lambda
  /// alone, for the gradients at the segments' ends.
  bool whole() const {
    const int from = steps <= 16 ? 32 : steps <= 32 ? 40 : 64;
    return segments > 1 && streams >= from;
  }
  /// Steps of a piece if the backward walks whole heads of 64 in pieces (PieceQueue); 0: it does
  /// not. Pieces pay where the last round of whole heads would leave slots idle, more than an
  /// eighth of what all heads need.
  int piece() const {
    constexpr int kSteps = 8, kSlots = kWkv7PlannedProcessors * Head<64>::kBackwardMany;
    if (state_floats != 64 * 64 || segments > 1 || steps < 2 * kSteps || streams <= kSlots)
      return 0;
    const int64_t rounds = (streams + kSlots - 1) / kSlots;
    return 8 * rounds * kSlots > int64_t{9} * streams ? kSteps : 0;
  }
};

}  // namespace rwkv::cuda::chunk
