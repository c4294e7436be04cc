#pragma once
/// Chunked WKV-7 backward (spec rwkv7 4.2), last chunk first. Per chunk, with S0 the state at its
/// start, lambda the gradient of the state at its end, L = lambda diag(P):
///   dU = A_rb^T dY + B~ L^T;  Z = dU + (Tm - I)^T dU;  dV = A_rk^T dY + K~ L^T + A_ak^T Z
///   D_rb, D_rk = causal dY U^T, dY V^T;  D_ab, D_ak = strictly causal Z U^T, Z V^T
///   dR~ = dY S0 + D_rb B~ + D_rk K~      dB~ = U L + D_rb^T R~ + D_ab^T A~
///   dA~ = Z  S0 + D_ab B~ + D_ak K~      dK~ = V L + D_rk^T R~ + D_ak^T A~
///   lambda <- L + dY^T R~ + Z^T A~
/// Gradient of log(decay), with X~_in the part of dX~ without S0 and L:
///   dg_t = sum_i S0 L + sum_{s<t} (B~ (U L) + K~ (V L))_s
///        + sum_{s>=t} (R~ dR~ - B~ dB~_in - K~ dK~_in)_s + sum_{s>t} (A~ dA~)_s
/// It equals the straddling form of spec 4.2: in the third sum the pairs that do not straddle t
/// cancel to fp32 rounding, because both sides use the same bf16 D, R~, A~, B~, K~.
///
/// Two kinds of work alternate. Warp -> 16 value rows: the chains of S and lambda, U, Z, dV.
/// Warp -> 16 key columns: the sums over value rows, all other gradients.

#include "kernels/wkv/cuda/wkv7_chunk.cuh"
#include "kernels/wkv/cuda/wkv7_chunk_head.h"
#include "kernels/wkv/cuda/wkv7_segments.cuh"

namespace rwkv::cuda::chunk {

struct BackwardParams {
  Inputs in;
  const __nv_bfloat16* dy;
  const float* end_gradient;  // (B H, segments), or ds_out with one segment; null: zero
  const uint32_t* checkpoints;
  __nv_bfloat16 *dr, *dw, *dk, *dv, *da, *db;
  float* ds0;
  float* operator_q;  // (B H, segments), for kOperator
  unsigned add;       // Wkv7Backward::add
  bool has_s0;
  bool whole;  // for LambdaWalk
  // With pieces of heads, which are the segments then: how many of them blocks have taken, then for
  // every head how many are done; and (B H) gradients that a piece hands to the one before it.
  unsigned* queue;
  float* handed;
  int tokens, heads, steps, segments, steps_per_segment;
};

enum Gradient { kDrb, kDrk, kDak, kDab };

template <int kN>
struct BackwardShared {
  using Rows = uint4[Head<kN>::kRowsWords];
  using State = uint4[kN * Head<kN>::kRowBytes / 16];
  Rows r, a, b, k, v, dy, u;
  Rows w;  // raw, one step ahead
  State s0, l;
  uint4 z[Head<kN>::kRowsWords / 2];
  uint4 small[2 * kSmalls * kSmallBytes / 16];
  float exp_c[kStep * Head<kN>::kExpRow];
  float end[2 * kN];
  __device__ float* solve() { return reinterpret_cast<float*>(l); }  // l is not in use yet
};

template <int kN>
struct OperatorShared {
  using Rows = uint4[Head<kN>::kRowsWords];
  Rows r, a, b, dy;
  uint4 small[2 * kSmalls * kSmallBytes / 16];
  float solve_rows[2 * kChunk * kSolveRow];
  float end[2 * kN];
};

// Row-major bf16 copy of this warp's 16 rows of a state.
template <int kN>
__device__ __forceinline__ void put_rows(uint32_t to, int j, const Frag& f) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int row = warp * 16 + (lane >> 2), column = (lane & 3) * 2;
  constexpr uint32_t kDown = 8 * Head<kN>::kRowBytes;
  const uint32_t left = to + tile<kN>(cell<kN>(row, column), j);
  const uint32_t right = to + tile<kN>(cell<kN>(row, column + 8), j);
  store_shared(left, f.x[0]);
  store_shared(left + kDown, f.x[1]);
  store_shared(right, f.x[2]);
  store_shared(right + kDown, f.x[3]);
}

template <int kTiles>
__device__ __forceinline__ void load_checkpoint(Frag (&f)[kTiles], const uint32_t* from) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const uint4* at = reinterpret_cast<const uint4*>(from + warp * (kTiles * 128)) + lane;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const uint4 x = __ldg(at + j * 32);
    f[j] = {{x.x, x.y, x.z, x.w}};
  }
}

// Asks for the rows and the state of a step that comes later.
template <int kN>
__device__ __forceinline__ void prefetch_step(const BackwardParams& p, int64_t x0, int64_t stride,
                                              const uint32_t* checkpoint) {
  constexpr int kPerRow = Head<kN>::kThreads / kStep;  // threads per row, 32 channels each
  constexpr int kLines = kN > 64 ? kN / 64 : 1, kVectors = kPerRow / kLines;
  const int thread = static_cast<int>(threadIdx.x), row = thread / kPerRow;
  const int part = thread % kPerRow;
  const int64_t at = x0 + row * stride + part / kVectors * 64;
  const __nv_bfloat16* const from[] = {p.in.r, p.in.k, p.in.v, p.dy, p.in.a, p.in.b};
#pragma unroll
  for (int i = 0; i < 6; ++i)
    if (i % kVectors == part % kVectors) prefetch_l2(from[i] + at);
  if (thread < Head<kN>::kCheckpointWords / 32) prefetch_l2(checkpoint + thread * 32);
}

// U of one chunk from the packed start state, stored as token rows.
template <int kN>
__device__ __forceinline__ Frag solve_u(const Chain<kN>& chain, const Frag (&s)[kN / 16],
                                        const Frag& v, uint32_t a, uint32_t smalls, uint32_t to) {
  float x[2][4] = {};
  chain.begin();
  chain.rows(x, s, a);
  chain.template small<false>(x, v, smalls, kAkRest);
  chain.template small<false>(x, v, smalls, kAk);
  chain.commit();
  chain.finish(x);
  chain.template apply_tm<false>(x, smalls);
  chain.commit();
  chain.finish(x);
  const Frag u = pack_frag(x[0], x[1]);
  store_frag_t(to, u);
  return u;
}

// One chunk of the lambda chain. kFull also gives L and dV, leaves Z in shared memory, and calls
// `meanwhile` when L is known and products are still under way.
template <bool kFull, int kN, class Meanwhile>
__device__ __forceinline__ void step_lambda(const Chain<kN>& chain, StateRows<kN>& lambda,
                                            const Frag& dy, const Tilde& t, uint32_t rows,
                                            uint32_t smalls, const float* end, uint32_t z_to,
                                            float (&dv)[2][4], Frag (&l)[kN / 16],
                                            Meanwhile&& meanwhile) {
  scale_columns(lambda, end);
#pragma unroll
  for (int j = 0; j < kN / 16; ++j) l[j] = pack_frag(lambda[2 * j], lambda[2 * j + 1]);
  float z[2][4] = {};
  chain.begin();
  chain.rows(z, l, t.b + rows);
  chain.template small<true>(z, dy, smalls, kRbRest);
  chain.template small<true>(z, dy, smalls, kRb);
  chain.commit();
  chain.finish(z);
  chain.template apply_tm<true>(z, smalls);
  chain.commit();
  chain.begin();
  if constexpr (kFull) {
    chain.rows(dv, l, t.k + rows);
    chain.template small<true>(dv, dy, smalls, kRk);
    chain.template small<true>(dv, dy, smalls, kRkRest);
  }
  chain.outer(lambda, dy, t.r + rows);
  chain.commit();
  chain.template finish<1>(z);
  const Frag z_bf16 = pack_frag(z[0], z[1]);
  if constexpr (kFull) store_frag_t(z_to, z_bf16);
  chain.begin();
  chain.outer(lambda, z_bf16, t.a + rows);
  if constexpr (kFull) {
    chain.template small<true>(dv, z_bf16, smalls, kAk);
    chain.template small<true>(dv, z_bf16, smalls, kAkRest);
  }
  chain.commit();
  if constexpr (kFull) {
    chain.template wait<1>();  // for l to be free
    meanwhile();
  }
  chain.finish(lambda);
  if constexpr (kFull) chain.finish(dv);
}

// The 16 x 16 matrix with ones where column >= row: times X, the sums of X over later rows.
__device__ __forceinline__ Frag upper_ones() {
  const uint32_t row = (threadIdx.x & 31u) >> 2, k = (threadIdx.x & 3u) * 2;
  const uint32_t diagonal = (k >= row ? 0x3f80u : 0u) | (k + 1 >= row ? 0x3f800000u : 0u);
  return {{diagonal, 0u, 0x3f803f80u, diagonal}};
}

// Sums over the rows >= each one, for a tile's rows g (x[0], x[1]) and g + 8 (x[2], x[3]): a
// product with ones, X as two bf16 numbers (error 2^-17 of the largest).
__device__ __forceinline__ void suffix_sums(float (&x)[4], const Frag& ones) {
  const uint32_t upper = pack(x[0], x[1]), lower = pack(x[2], x[3]);
  const uint32_t upper_rest = pack_rest(x[0], x[1], upper),
                 lower_rest = pack_rest(x[2], x[3], lower);
#pragma unroll
  for (int e = 0; e < 4; ++e) x[e] = 0;
  mma(x, ones, transpose8(upper_rest), transpose8(lower_rest));
  mma(x, ones, transpose8(upper), transpose8(lower));
}

__device__ __forceinline__ float column_sum(float x) {
#pragma unroll
  for (int d = 4; d < 32; d *= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

// Writes a tile of a gradient, or adds it to what is there; null: nobody wants it.
__device__ __forceinline__ void put_gradient(__nv_bfloat16* to, unsigned add, const RowPlace& at,
                                             const Frag& f) {
  if (to == nullptr) return;
  if ((add & 1u) != 0)
    add_rows(to, at, f);
  else
    store_rows(to, at, f);
}

struct Pair {
  float x[4];  // two columns of row g, two of row g + 8
};

template <int kN>
__device__ __forceinline__ Pair load_pair(uint32_t at) {
  const uint32_t upper = load_shared(at), lower = load_shared(at + 8 * Head<kN>::kRowBytes);
  return {{low_half(upper), high_half(upper), low_half(lower), high_half(lower)}};
}

struct ChunkAddresses {
  uint32_t r, a, b, k, v, dy, u, w, z, s0, l, d;  // first row of the chunk, without the lane
  uint32_t w_buffer;
  const __nv_bfloat16* next_w;  // w of the step to come; null while it is too early
  const float* exp_c;           // row of the chunk's first token
};

__device__ __forceinline__ Frag pick(bool first, const Frag& a, const Frag& b) {
  Frag f;
#pragma unroll
  for (int e = 0; e < 4; ++e) f.x[e] = first ? a.x[e] : b.x[e];
  return f;
}

// dR, dA, dB, dK, dW of 16 tokens x this warp's 16 columns.
template <int kN>
__device__ __forceinline__ void key_gradients(const BackwardParams& p, const ChunkAddresses& at,
                                              const Lanes<kN>& lanes, int64_t x0, int64_t stride,
                                              int tokens, bool from_zero) {
  constexpr int kWarps = Head<kN>::kWarps, kTiles = Head<kN>::kTiles,
                kRowBytes = Head<kN>::kRowBytes, kExpRow = Head<kN>::kExpRow;
  const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31;
  const uint32_t lane_at = lanes.down, own = tile<kN>(lane_at, warp);
  uint32_t logits[2][2];  // [upper or lower row][half]
#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    const int token = (lane >> 2) + 8 * lower;
    const int column = warp * 16 + (lane & 3) * 2;
    logits[lower][0] = load_shared(at.w + cell<kN>(token, column));
    logits[lower][1] = load_shared(at.w + cell<kN>(token, column + 8));
  }
  float dr[2][4] = {}, da[2][4] = {}, db[2][4] = {}, dk[2][4] = {}, far_b[2][4] = {},
        far_k[2][4] = {}, crossing[2][4] = {}, d_own[kWarps == 2 ? 2 : 1][2][4] = {};
  const bool with_u = warp == kDrb || warp == kDab;
  constexpr Frag kOnes = {{0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u}};
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const Frag s = load_frag_t(at.s0 + i * 16 * kRowBytes + own);
    const Frag l = load_frag_t(at.l + i * 16 * kRowBytes + own);
    const uint32_t column = tile<kN>(lane_at, i);
    const Frag dy = load_frag(at.dy + column), z = load_frag(at.z + column);
    const Frag u = load_frag(at.u + column), v = load_frag(at.v + column);
    mma16(dr, dy, s);
    mma16(da, z, s);
    mma16(far_b, u, l);
    mma16(far_k, v, l);
    // This warp's one of D_rb, D_rk, D_ak, D_ab, or two if there are two warps. The tiles of u or v
    // are already here in the order "down"; as B operands they are wanted in the order "across".
    if constexpr (kWarps == 2) {
      const Frag left = pick(warp == 0, dy, z);
      mma(d_own[0][0], left, u.x[0], u.x[2]);
      mma(d_own[0][1], left, u.x[1], u.x[3]);
      mma(d_own[1][0], left, v.x[0], v.x[2]);
      mma(d_own[1][1], left, v.x[1], v.x[3]);
    } else if (kWarps == 4 || warp < 4) {
      const Frag left = pick(warp < kDak, dy, z), right = pick(with_u, u, v);
      mma(d_own[0][0], left, right.x[0], right.x[2]);
      mma(d_own[0][1], left, right.x[1], right.x[3]);
    }
    Frag sl;
#pragma unroll
    for (int e = 0; e < 4; ++e) sl.x[e] = mul_bf16x2(s.x[e], l.x[e]);
    mma16(crossing, kOnes, sl);
  }
  if constexpr (kWarps == 2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      keep_causal(d_own[i], warp == 0 ? 1 : 0);
      const int which = warp == 0 ? (i == 0 ? kDrb : kDrk) : (i == 0 ? kDab : kDak);
      store_small(at.d + which * kSmallBytes, pack_frag(d_own[i][0], d_own[i][1]));
    }
  } else if (kWarps == 4 || warp < 4) {
    keep_causal(d_own[0], warp < kDak ? 1 : 0);
    store_small(at.d + warp * kSmallBytes, pack_frag(d_own[0][0], d_own[0][1]));
  }
  __syncthreads();  // D of all warps is there, and w is read
  if (at.next_w != nullptr) {
    copy_rows<kN>(at.w_buffer, at.next_w, 0, stride, kStep);
    copy_async_commit();
  }
  const uint32_t d = at.d + lanes.small_down, d_t = at.d + lanes.small_across;
  {
    const Frag b = load_frag_t(at.b + own), k = load_frag_t(at.k + own);
    mma16(dr, load_frag(d + kDrb * kSmallBytes), b);
    mma16(dr, load_frag(d + kDrk * kSmallBytes), k);
    mma16(da, load_frag(d + kDab * kSmallBytes), b);
    mma16(da, load_frag(d + kDak * kSmallBytes), k);
  }
  {
    const Frag r = load_frag_t(at.r + own), a = load_frag_t(at.a + own);
    mma16(db, load_frag_t(d_t + kDrb * kSmallBytes), r);
    mma16(db, load_frag_t(d_t + kDab * kSmallBytes), a);
    mma16(dk, load_frag_t(d_t + kDrk * kSmallBytes), r);
    mma16(dk, load_frag_t(d_t + kDak * kSmallBytes), a);
  }
  const int row = lane >> 2, column = warp * 16 + (lane & 3) * 2;
  Frag out_r, out_w, out_k, out_a, out_b;
  const Frag ones = upper_ones();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t pair = cell<kN>(row, column + half * 8);
    const Pair r = load_pair<kN>(at.r + pair), a = load_pair<kN>(at.a + pair);
    const Pair b = load_pair<kN>(at.b + pair), k = load_pair<kN>(at.k + pair);
    float grow[4], total[2] = {}, after_a[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float far = b.x[e] * far_b[half][e] + k.x[e] * far_k[half][e];
      after_a[e] = a.x[e] * da[half][e];
      grow[e] =
          r.x[e] * dr[half][e] - b.x[e] * db[half][e] - k.x[e] * dk[half][e] - far + after_a[e];
      total[e & 1] += far;
    }
    suffix_sums(grow, ones);
    total[0] = column_sum(total[0]) + crossing[half][0];
    total[1] = column_sum(total[1]) + crossing[half][1];
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int token = row + 8 * lower, e = 2 * lower;
      const float* exp_at = at.exp_c + token * kExpRow + column + half * 8;
      const float2 now = *reinterpret_cast<const float2*>(exp_at);
      const float2 before =
          token == 0 ? make_float2(1, 1) : *reinterpret_cast<const float2*>(exp_at - kExpRow);
      const int slot = lower + 2 * half;
      out_r.x[slot] = pack(dr[half][e] * now.x, dr[half][e + 1] * now.y);
      out_a.x[slot] = pack(da[half][e] * before.x, da[half][e + 1] * before.y);
      const float2 inverse = make_float2(reciprocal_fast(now.x), reciprocal_fast(now.y));
      out_b.x[slot] = pack((db[half][e] + far_b[half][e]) * inverse.x,
                           (db[half][e + 1] + far_b[half][e + 1]) * inverse.y);
      out_k.x[slot] = pack((dk[half][e] + far_k[half][e]) * inverse.x,
                           (dk[half][e + 1] + far_k[half][e + 1]) * inverse.y);
      const uint32_t logit = logits[lower][half];
      const auto to_logit = [&](float g, float w) {
        const float up = exp2_fast(-kLog2E * fabsf(w));  // s (1 - s) = up / (1 + up)^2
        const float s = reciprocal_fast(1.0f + up);
        return -kDecay * g * up * s * s;
      };
      const bool nothing = from_zero && token == 0;
      const float g0 = nothing ? 0.0f : total[0] + grow[e] - after_a[e];
      const float g1 = nothing ? 0.0f : total[1] + grow[e + 1] - after_a[e + 1];
      out_w.x[slot] = pack(to_logit(g0, low_half(logit)), to_logit(g1, high_half(logit)));
    }
  }
  const RowPlace to(x0 + warp * 16, stride, tokens);
  put_gradient(p.dr, p.add >> 0, to, out_r);
  put_gradient(p.dw, p.add >> 1, to, out_w);
  put_gradient(p.dk, p.add >> 2, to, out_k);
  put_gradient(p.da, p.add >> 4, to, out_a);
  put_gradient(p.db, p.add >> 5, to, out_b);
}

// kBlocks per multiprocessor: 2 leaves the compiler more registers where no more blocks are needed.
template <int kN, int kBlocks>
__global__ void __launch_bounds__(Head<kN>::kThreads, kBlocks)
    backward_kernel(const BackwardParams p) {
  using Sizes = Head<kN>;
  constexpr int kTiles = Sizes::kTiles, kRowBytes = Sizes::kRowBytes;
  extern __shared__ __align__(1024) uint4 memory[];
  BackwardShared<kN>& shared = *reinterpret_cast<BackwardShared<kN>*>(memory);
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int head = static_cast<int>(blockIdx.x), segment = static_cast<int>(blockIdx.y);
  const int first = segment * p.steps_per_segment;
  const int last = min(first + p.steps_per_segment, p.steps);
  const int64_t stride = static_cast<int64_t>(p.heads) * kN;
  const int64_t origin = static_cast<int64_t>(head / p.heads) * p.tokens * stride +
                         static_cast<int64_t>(head % p.heads) * kN;
  const Tilde tilde{shared_address(shared.r), shared_address(shared.a), shared_address(shared.b),
                    shared_address(shared.k)};
  const uint32_t v_at = shared_address(shared.v), dy_at = shared_address(shared.dy),
                 u_at = shared_address(shared.u), z_at = shared_address(shared.z),
                 s0_at = shared_address(shared.s0), l_at = shared_address(shared.l),
                 w_at = shared_address(shared.w), small_at = shared_address(shared.small);
  const Chain<kN> chain;
  const Lanes<kN>& lanes = chain.lanes;
  const uint32_t own = tile<kN>(lanes.across, warp);  // this warp's 16 value columns

  wait_for_previous_kernel();
  StateRows<kN> lambda = {};
  if (p.end_gradient != nullptr)
    load_state(lambda, p.end_gradient + (static_cast<int64_t>(head) * p.segments + segment) *
                                            Sizes::kStateFloats);

  copy_rows<kN>(w_at, p.in.w, origin + int64_t{last - 1} * kStep * stride, stride,
                p.tokens - (last - 1) * kStep);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  for (int step = last - 1; step >= first; --step) {
    const int tokens = p.tokens - step * kStep;
    const int64_t x0 = origin + int64_t{step} * kStep * stride;
    {
      Raw raw;
      load_raw<kN, true, true, false>(raw, p.in, x0, stride, tokens);
      copy_rows<kN>(v_at, p.in.v, x0, stride, tokens);
      copy_rows<kN>(dy_at, p.dy, x0, stride, tokens);
      copy_async_commit();
      const PrepPlace<kN> place;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        raw.w[i] = *reinterpret_cast<const uint2*>(reinterpret_cast<const char*>(shared.w) +
                                                   cell<kN>(place.token + i, place.channel));
      prepare<kN, true, true, true>(raw, tokens, tilde, shared.end, shared.exp_c);
    }
    chain.publish();
    __syncthreads();
    const uint32_t* checkpoint =
        p.checkpoints + (static_cast<int64_t>(head) * p.steps + step) * Sizes::kCheckpointWords;
    Frag start[kTiles];
    load_checkpoint(start, checkpoint);
    causal_products<kN, true, true>(tilde, small_at, shared.solve(), lanes);
    chain.publish();
    copy_async_wait<0>();
    __syncthreads();
    if (step > first) {
      prefetch_step<kN>(p, x0 - kStep * stride, stride, checkpoint - Sizes::kCheckpointWords);
    }

    // U of both chunks, and the state between them.
    {
      const Frag v = load_frag_t(v_at + own);
      const Frag u = solve_u<kN>(chain, start, v, tilde.a, small_at, u_at + own);
      StateRows<kN> s;
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const uint32_t word = start[n >> 1].x[(n & 1) * 2 + (e >> 1)];
          s[n][e] = (e & 1) != 0 ? high_half(word) : low_half(word);
        }
      chain.begin();
      chain.outer(s, u, tilde.b);
      chain.outer(s, v, tilde.k);
      chain.commit();
      chain.finish(s);
      scale_columns(s, shared.end);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        start[j] = pack_frag(s[2 * j], s[2 * j + 1]);
        put_rows<kN>(s0_at, j, start[j]);
      }
      const uint32_t rows = kChunk * kRowBytes;
      solve_u<kN>(chain, start, load_frag_t(v_at + rows + own), tilde.a + rows,
                  small_at + kSmalls * kSmallBytes, u_at + rows + own);
    }

#pragma unroll 1
    for (int c = 1; c >= 0; --c) {
      const uint32_t rows = static_cast<uint32_t>(c * kChunk * kRowBytes);
      const int64_t x = x0 + c * kChunk * stride;
      if (c == 0) load_checkpoint(start, checkpoint);
      float dv[2][4] = {};
      Frag l[kTiles];
      step_lambda<true, kN>(chain, lambda, load_frag_t(dy_at + rows + own), tilde, rows,
                            small_at + c * kSmalls * kSmallBytes, shared.end + c * kN, z_at + own,
                            dv, l, [&] {
#pragma unroll
                              for (int j = 0; j < kTiles; ++j) put_rows<kN>(l_at, j, l[j]);
                            });
      if (c == 0) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) put_rows<kN>(s0_at, j, start[j]);
      }
      put_gradient(p.dv, p.add >> 3, RowPlace(x + warp * 16, stride, tokens - c * kChunk),
                   transpose_frag(pack_frag(dv[0], dv[1])));
      __syncthreads();
      const uint32_t d_at = small_at + c * kSmalls * kSmallBytes;  // in place of used-up matrices
      const bool fetch = c == 0 && step > first;
      const ChunkAddresses at{tilde.r + rows,
                              tilde.a + rows,
                              tilde.b + rows,
                              tilde.k + rows,
                              v_at + rows,
                              dy_at + rows,
                              u_at + rows,
                              w_at + rows,
                              z_at,
                              s0_at,
                              l_at,
                              d_at,
                              w_at,
                              fetch ? p.in.w + x0 - kStep * stride : nullptr,
                              shared.exp_c + c * kChunk * Sizes::kExpRow};
      key_gradients<kN>(p, at, lanes, x, stride, tokens - c * kChunk,
                        step == 0 && c == 0 && !p.has_s0);
      if (c == 0) copy_async_wait<0>();
      __syncthreads();
    }
  }
  if (p.ds0 != nullptr && segment == 0)
    store_state(lambda, p.ds0 + static_cast<int64_t>(head) * Sizes::kStateFloats,
                (p.add >> 6 & 1u) != 0);
}

// Walks of the lambda chain alone. Without `whole`, block y + 1 finds Q of that segment, from zero
// (nobody needs the first one's). With it, one block per head finds the gradient of the state at
// every segment's end.
struct LambdaWalk {
  int head, segment, first, last;
  __device__ explicit LambdaWalk(const BackwardParams& p) : head(static_cast<int>(blockIdx.x)) {
    segment = static_cast<int>(blockIdx.y) + 1;
    first = segment * p.steps_per_segment;
    last = p.whole ? p.steps : min(first + p.steps_per_segment, p.steps);
  }
  __device__ float* slot(const BackwardParams& p, int at, int floats) const {
    return p.operator_q + (static_cast<int64_t>(head) * p.segments + at) * floats;
  }
  template <int kTiles>
  __device__ void begin(const BackwardParams& p, float (&lambda)[kTiles][4]) const {
    constexpr int kFloats = kTiles * kTiles * 64;
    if (!p.whole) return;
    if (p.end_gradient != nullptr)
      load_state(lambda, p.end_gradient + static_cast<int64_t>(head) * kFloats);
    store_state(lambda, slot(p, p.segments - 1, kFloats));
  }
  /// After `step`.
  template <int kTiles>
  __device__ void end(const BackwardParams& p, const float (&lambda)[kTiles][4], int step) const {
    constexpr int kFloats = kTiles * kTiles * 64;
    if (step % p.steps_per_segment != 0) return;
    const int at = step / p.steps_per_segment;
    store_state(lambda, slot(p, p.whole ? at - 1 : at, kFloats));
  }
};

// Only the lambda chain.
template <int kN>
__global__ void __launch_bounds__(Head<kN>::kThreads, Head<kN>::kForwardFew)
    operator_kernel(const BackwardParams p) {
  using Sizes = Head<kN>;
  constexpr int kRowBytes = Sizes::kRowBytes;
  extern __shared__ __align__(1024) uint4 memory[];
  OperatorShared<kN>& shared = *reinterpret_cast<OperatorShared<kN>*>(memory);
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const LambdaWalk walk(p);
  const int head = walk.head, first = walk.first, last = walk.last;
  const int64_t stride = static_cast<int64_t>(p.heads) * kN;
  const int64_t origin = static_cast<int64_t>(head / p.heads) * p.tokens * stride +
                         static_cast<int64_t>(head % p.heads) * kN;
  const Tilde tilde{shared_address(shared.r), shared_address(shared.a), shared_address(shared.b),
                    0};
  const uint32_t dy_at = shared_address(shared.dy), small_at = shared_address(shared.small);
  const Chain<kN> chain;
  StateRows<kN> lambda = {};
  walk.begin(p, lambda);
  Raw raw;
  load_raw<kN, true, false, true>(raw, p.in, origin + int64_t{last - 1} * kStep * stride, stride,
                                  p.tokens - (last - 1) * kStep);
  for (int step = last - 1; step >= first; --step) {
    const int tokens = p.tokens - step * kStep;
    const int64_t x0 = origin + int64_t{step} * kStep * stride;
    copy_rows<kN>(dy_at, p.dy, x0, stride, tokens);
    copy_async_commit();
    prepare<kN, true, false, false>(raw, tokens, tilde, shared.end, nullptr);
    chain.publish();
    __syncthreads();
    if (step > first)
      load_raw<kN, true, false, true>(raw, p.in, x0 - kStep * stride, stride, tokens + kStep);
    causal_products<kN, true, false>(tilde, small_at, shared.solve_rows, chain.lanes);
    chain.publish();
    copy_async_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (int c = 1; c >= 0; --c) {
      const uint32_t rows = static_cast<uint32_t>(c * kChunk * kRowBytes);
      float unused[2][4];
      Frag l[Sizes::kTiles];
      step_lambda<false, kN>(
          chain, lambda, load_frag_t(dy_at + rows + tile<kN>(chain.lanes.across, warp)), tilde,
          rows, small_at + c * kSmalls * kSmallBytes, shared.end + c * kN, 0, unused, l, [] {});
    }
    __syncthreads();
    walk.end(p, lambda, step);
  }
}

}  // namespace rwkv::cuda::chunk
