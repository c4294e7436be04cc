#pragma once
/// The chunked backward (wkv7_chunk_backward.cuh says what is computed) for heads of 64, on
/// warpgroup products. The sums over value rows are computed transposed, keys x tokens, so that
/// keys are the 64 rows: with [x; y] for tokens of x above tokens of y,
///   [dR~; dA~]^T = S0^T [dY; Z]^T + B~^T [D_rb; D_ab]^T + K~^T [D_rk; D_ak]^T
///   [U L; V L]^T = L^T [U; V]^T
///   [dB~; dK~]^T (inner part) = R~^T [D_rb, D_rk] + A~^T [D_ab, D_ak]
///   [D_rb, D_rk; D_ab, D_ak] = [dY; Z] [U; V]^T, causal
/// Warp -> 16 keys. The gradients of a chunk leave through shared memory, where S0 and L were.

#include "kernels/wkv/cuda/tma.cuh"
#include "kernels/wkv/cuda/wkv7_chunk_backward.cuh"

namespace rwkv::cuda::chunk {

struct BackwardMaps {
  CUtensorMap gradient[6];    // dr, dw, dk, dv, da, db: tiles of 16 tokens
  CUtensorMap v, dy;          // tiles of 16 tokens
  CUtensorMap r, w, k, a, b;  // tiles of 32 tokens
};

struct GroupShared {
  using Rows = uint4[Head<64>::kRowsWords];
  using Pair = uint4[2][Head<64>::kRowsWords / 2];  // 16 token rows of one vector, then of another
  Rows r, a, b, k;                                  // as they are in memory, then prepared
  Pair dy_z[2], u_v[2];                             // per chunk
  Rows w;
  uint4 s0[512], l[512];
  uint4 small[2 * kSmalls * kSmallBytes / 16];
  float exp_c[kStep * 68];
  float end[128];
  float crossing[4][64];  // per warp: sums over its value rows of S0 L
  uint64_t loaded;        // barrier of the loads
  int head, piece;        // from PieceQueue
  __device__ float* solve() { return reinterpret_cast<float*>(l); }  // l is not in use yet
};
inline constexpr int kTileBytes = 2048;  // 16 token rows
inline constexpr int kGroupExpRow = 68;  // floats: tokens 2q, keys g without bank conflicts

// D of a chunk: 32 x 16 matrices [D_rb; D_ab] and [D_rk; D_ak] as 8 x 8 tiles of 128 bytes, first
// down, then across. As B operands: their rows as columns, or (16 rows of both) as K.
inline constexpr int kPairBytes = 1024;
inline constexpr uint64_t kPairAsIs = (uint64_t{8} << 32) | (32u << 16);
inline constexpr uint64_t kPairTransposed = (uint64_t{32} << 32) | (8u << 16);

// Starts the loads of a step. One thread, when nobody needs the last step's rows.
__device__ __forceinline__ void load_step(const BackwardMaps& maps, GroupShared& shared,
                                          int channel, int token, int batch) {
  const uint32_t barrier = shared_address(&shared.loaded);
  expect(barrier, 14 * kTileBytes);
  const auto load = [&](const CUtensorMap& map, const void* to, int at) {
    load_tile(shared_address(to), map, channel, at, batch, barrier);
  };
  load(maps.w, shared.w, token);
  load(maps.a, shared.a, token);
  load(maps.b, shared.b, token);
  load(maps.k, shared.k, token);
  load(maps.r, shared.r, token);
  for (int c = 0; c < 2; ++c) {
    load(maps.v, shared.u_v[c][1], token + c * kChunk);
    load(maps.dy, shared.dy_z[c][0], token + c * kChunk);
  }
}
__device__ __forceinline__ void prefetch_step(const BackwardMaps& maps, int channel, int token,
                                              int batch) {
  const CUtensorMap* const whole[] = {&maps.r, &maps.w, &maps.k, &maps.a, &maps.b};
#pragma unroll
  for (int i = 0; i < 5; ++i) prefetch_tile(*whole[i], channel, token, batch);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    prefetch_tile(maps.v, channel, token + c * kChunk, batch);
    prefetch_tile(maps.dy, channel, token + c * kChunk, batch);
  }
}

// Halves what each lane holds, the lower or upper kHalf of its numbers, while it doubles the rows
// that are summed.
template <int kHalf>
__device__ __forceinline__ void halve(float (&x)[16], int lane) {
  const bool upper = (lane & (2 * kHalf)) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + kHalf], 2 * kHalf);
    x[i] = (upper ? x[i + kHalf] : x[i]) + other;
  }
}

// Sums of S0 L over this warp's 16 value rows, for all keys.
__device__ __forceinline__ void put_crossing(const Frag (&s0)[4], const Frag (&l)[4], float* to) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  float x[16];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const uint32_t s_up = s0[n >> 1].x[(n & 1) * 2], s_low = s0[n >> 1].x[(n & 1) * 2 + 1];
    const uint32_t l_up = l[n >> 1].x[(n & 1) * 2], l_low = l[n >> 1].x[(n & 1) * 2 + 1];
    x[2 * n] = low_half(s_up) * low_half(l_up) + low_half(s_low) * low_half(l_low);
    x[2 * n + 1] = high_half(s_up) * high_half(l_up) + high_half(s_low) * high_half(l_low);
  }
  // Lane g ends with column tile g.
  halve<8>(x, lane);
  halve<4>(x, lane);
  halve<2>(x, lane);
  *reinterpret_cast<float2*>(to + lane * 2) = make_float2(x[0], x[1]);
}

// Four values of a tile: [token half][upper keys 0, 1; lower keys 0, 1].
struct Cells {
  float x[2][4];
};
// A 16 x 16 tile of token rows, transposed: keys x tokens as accumulators hold them.
__device__ __forceinline__ Cells load_cells(uint32_t at) {
  const Frag f = load_frag_t(at);
  Cells c;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    c.x[h][0] = low_half(f.x[h]);
    c.x[h][1] = high_half(f.x[h]);
    c.x[h][2] = low_half(f.x[2 + h]);
    c.x[h][3] = high_half(f.x[2 + h]);
  }
  return c;
}

// x (keys x tokens) <- its sums over tokens from each one on: a product with ones, X as two bf16
// numbers (error 2^-17 of the largest).
__device__ __forceinline__ void suffix_sums(float (&x)[2][4]) {
  const uint32_t g = (threadIdx.x & 31u) >> 2, k = (threadIdx.x & 3u) * 2;
  const uint32_t triangle = (k >= g ? 0x3f80u : 0u) | (k + 1 >= g ? 0x3f800000u : 0u);
  const Frag high = pack_frag(x[0], x[1]), rest = pack_frag_rest(x[0], x[1], high);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[h][e] = 0;
    const uint32_t first = h == 0 ? triangle : 0u, second = h == 0 ? 0x3f803f80u : triangle;
    mma(x[h], rest, first, second);
    mma(x[h], high, first, second);
  }
}

struct GroupAddresses {
  uint32_t r, a, b, k, w;  // 16 token rows
  uint32_t dy_z, u_v, s0, l, d;
  const float* exp_c;  // row of the chunk's first token
  const float* crossing;
};

// D of a chunk into shared memory, from warps 0 (dY) and 1 (Z).
__device__ __forceinline__ void put_causal(const float (&d)[4][4], uint32_t to) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int inclusive = warp == 0 ? 1 : 0;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    float x[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = (lane >> 2) + 8 * (e >> 1);
      const int column = (n & 1) * 8 + (lane & 3) * 2 + (e & 1);
      x[e] = column < row + inclusive ? d[n][e] : 0.0f;
    }
    const uint32_t at =
        to + static_cast<uint32_t>((n >> 1) * kPairBytes + (n & 1) * 512 + warp * 256 + lane * 4);
    store_shared(at, pack(x[0], x[1]));
    store_shared(at + 128, pack(x[2], x[3]));
  }
}

// All gradients but dV of one chunk, left as tiles in s0 and l: dr, da, db, dk | -, -, dw, dv.
__device__ __forceinline__ void group_gradients(const GroupAddresses& at, const Lanes<64>& lanes,
                                                const Frag& dv, bool from_zero) {
  const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31;
  const uint32_t own = tile<64>(lanes.down, warp);
  const Frag logits = load_frag_t(at.w + own);
  float inner[4][4] = {}, far[4][4] = {}, d[4][4] = {};  // [dR~; dA~]^T, [U L; V L]^T, D
  {
    const auto rows = [](uint32_t from, uint32_t offset) {
      return describe(from, kSwizzledRows, offset);
    };
    wgmma_begin();
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j)
      wgmma32<false, false>(d, rows(at.dy_z, 2 * j), rows(at.u_v, 2 * j));
    wgmma_commit();
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j)
      wgmma32<true, false>(inner, rows(at.s0, 128 * j), rows(at.dy_z, 2 * j));
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j)
      wgmma32<true, false>(far, rows(at.l, 128 * j), rows(at.u_v, 2 * j));
    wgmma_commit();
    wgmma_wait<1>();
    settle(d);
  }
  if (warp < 2) put_causal(d, at.d);
  wgmma_wait<0>();
  settle(inner);
  settle(far);
  publish_shared();
  __syncthreads();         // D is there; w, S0 and L are read
  float outer[4][4] = {};  // inner part of [dB~; dK~]^T
  wgmma_begin();
  wgmma32<true, false>(inner, describe(at.b, kSwizzledRows), describe(at.d, kPairAsIs));
  wgmma32<true, false>(inner, describe(at.k, kSwizzledRows),
                       describe(at.d, kPairAsIs, kPairBytes / 16));
  wgmma32<true, true>(outer, describe(at.r, kSwizzledRows), describe(at.d, kPairTransposed));
  wgmma32<true, true>(outer, describe(at.a, kSwizzledRows), describe(at.d, kPairTransposed, 16));
  wgmma_commit();
  const uint32_t stage = tile<64>(lanes.across, warp);
  store_frag_t(at.l + 3 * kTileBytes + stage, dv);
  const Cells b = load_cells(at.b + own), k = load_cells(at.k + own);
  const int key = warp * 16 + (lane >> 2), token = (lane & 3) * 2;
  float grow[2][4], total[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float x = b.x[h][e] * far[h][e] + k.x[h][e] * far[2 + h][e];
      total[e >> 1] += x;
      grow[h][e] = -x;
    }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    total[i] += __shfl_xor_sync(0xffffffffu, total[i], 1);
    total[i] += __shfl_xor_sync(0xffffffffu, total[i], 2);
#pragma unroll
    for (int part = 0; part < 4; ++part) total[i] += at.crossing[part * 64 + key + 8 * i];
  }
  wgmma_wait<0>();
  settle(inner);
  settle(outer);
  float after_a[2][4];
  {
    const Cells r = load_cells(at.r + own), a = load_cells(at.a + own);
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        after_a[h][e] = a.x[h][e] * inner[2 + h][e];
        grow[h][e] += r.x[h][e] * inner[h][e] - b.x[h][e] * outer[h][e] -
                      k.x[h][e] * outer[2 + h][e] + after_a[h][e];
      }
  }
  suffix_sums(grow);
  Frag out_r, out_w, out_k, out_a, out_b;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int t = 8 * h + token, e = 2 * lower, slot = lower + 2 * h;
      const float* exp_at = at.exp_c + t * kGroupExpRow + key + 8 * lower;
      const float before = t == 0 ? 1.0f : exp_at[-kGroupExpRow];
      const float now = exp_at[0], next = exp_at[kGroupExpRow];
      const float inverse = reciprocal_fast(now), inverse_next = reciprocal_fast(next);
      out_r.x[slot] = pack(inner[h][e] * now, inner[h][e + 1] * next);
      out_a.x[slot] = pack(inner[2 + h][e] * before, inner[2 + h][e + 1] * now);
      out_b.x[slot] = pack((outer[h][e] + far[h][e]) * inverse,
                           (outer[h][e + 1] + far[h][e + 1]) * inverse_next);
      out_k.x[slot] = pack((outer[2 + h][e] + far[2 + h][e]) * inverse,
                           (outer[2 + h][e + 1] + far[2 + h][e + 1]) * inverse_next);
      const uint32_t logit = logits.x[2 * lower + h];
      const auto to_logit = [&](float g, float w) {
        const float up = exp2_fast(-kLog2E * fabsf(w));  // s (1 - s) = up / (1 + up)^2
        const float s = reciprocal_fast(1.0f + up);
        return -kDecay * g * up * s * s;
      };
      const bool nothing = from_zero && t == 0;
      const float g0 = nothing ? 0.0f : total[lower] + grow[h][e] - after_a[h][e];
      const float g1 = total[lower] + grow[h][e + 1] - after_a[h][e + 1];
      out_w.x[slot] = pack(to_logit(g0, low_half(logit)), to_logit(g1, high_half(logit)));
    }
  store_frag_t(at.s0 + stage, out_r);
  store_frag_t(at.s0 + kTileBytes + stage, out_a);
  store_frag_t(at.s0 + 2 * kTileBytes + stage, out_b);
  store_frag_t(at.s0 + 3 * kTileBytes + stage, out_k);
  store_frag_t(at.l + 2 * kTileBytes + stage, out_w);
}

// Sends the tiles of a chunk on their way. One thread.
__device__ __forceinline__ void send_gradients(const BackwardParams& p, const BackwardMaps& maps,
                                               uint32_t s0, uint32_t l, int channel, int token,
                                               int batch) {
  const uint32_t tiles[] = {s0,
                            l + 2 * kTileBytes,
                            s0 + 3 * kTileBytes,
                            l + 3 * kTileBytes,
                            s0 + kTileBytes,
                            s0 + 2 * kTileBytes};
  const __nv_bfloat16* const wanted[] = {p.dr, p.dw, p.dk, p.dv, p.da, p.db};
#pragma unroll
  for (int i = 0; i < 6; ++i)
    if (wanted[i] != nullptr)
      store_tile(maps.gradient[i], (p.add >> i & 1u) != 0, tiles[i], channel, token, batch);
  commit_tiles();
}

/// The pieces of whole heads, later tokens first, and the order in which blocks take them: more
/// heads than fit at once then share the processors evenly to the end. Only a piece that some
/// running or finished block has taken is ever waited for.
struct PieceQueue {
  unsigned* taken;
  unsigned* done;  // per head
  __device__ explicit PieceQueue(const BackwardParams& p) : taken(p.queue), done(p.queue + 1) {}
  /// By all threads of a block, like the others: shared.head and shared.piece.
  __device__ void take(GroupShared& shared, int pieces) const {
    if (threadIdx.x == 0) {
      const unsigned ticket = atomicAdd(taken, 1u);
      shared.head = static_cast<int>(ticket % gridDim.x);
      shared.piece = pieces - 1 - static_cast<int>(ticket / gridDim.x);
    }
    __syncthreads();
  }
  /// Until `pieces` of a head are done.
  __device__ void await(int head, int pieces) const {
    if (threadIdx.x == 0)
      for (unsigned there = 0; there < static_cast<unsigned>(pieces);) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(there)
                     : "l"(done + head)
                     : "memory");
        if (there < static_cast<unsigned>(pieces)) __nanosleep(100);
      }
    __syncthreads();
  }
  __device__ void finish(int head) const {
    __syncthreads();  // all have stored
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(done + head, 1u);
    }
  }
};

// kQueue: with PieceQueue. The grid says how many heads and segments (or pieces) there are.
template <int kN, int kBlocks, bool kQueue>
__global__ void __launch_bounds__(128, kBlocks)
    group_backward_kernel(const BackwardParams p, const __grid_constant__ BackwardMaps maps) {
  using Sizes = Head<64>;
  extern __shared__ __align__(1024) uint4 memory[];
  GroupShared& shared = *reinterpret_cast<GroupShared*>(memory);
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  if constexpr (kQueue) PieceQueue(p).take(shared, p.segments);
  // Read again where it is needed: that costs less than a register.
  const auto this_head = [&] { return kQueue ? shared.head : static_cast<int>(blockIdx.x); };
  const int head = this_head(), segment = kQueue ? shared.piece : static_cast<int>(blockIdx.y);
  const int first = segment * p.steps_per_segment;
  const int last = min(first + p.steps_per_segment, p.steps);
  const int channel = head % p.heads * 64, batch = head / p.heads;
  const Tilde tilde{shared_address(shared.r), shared_address(shared.a), shared_address(shared.b),
                    shared_address(shared.k)};
  const uint32_t dy_z_at = shared_address(shared.dy_z), u_v_at = shared_address(shared.u_v),
                 s0_at = shared_address(shared.s0), l_at = shared_address(shared.l),
                 w_at = shared_address(shared.w), small_at = shared_address(shared.small);
  const Chain<64> chain;
  const uint32_t own = tile<64>(chain.lanes.across, warp);  // this warp's 16 value columns

  wait_for_previous_kernel();
  StateRows<64> lambda = {};
  if (!kQueue && p.end_gradient != nullptr)
    load_state(lambda, p.end_gradient + (static_cast<int64_t>(head) * p.segments + segment) *
                                            Sizes::kStateFloats);

  const uint32_t loaded = shared_address(&shared.loaded);
  if (threadIdx.x == 0) {
    make_barrier(loaded);
    load_step(maps, shared, channel, (last - 1) * kStep, batch);
  }
  __syncthreads();
  const auto state = [&] { return static_cast<int64_t>(this_head()) * Sizes::kStateFloats; };
  if constexpr (kQueue) {
    const int later = p.segments - 1 - segment;
    if (later > 0) PieceQueue(p).await(head, later);
    const float* end = later > 0 ? p.handed : p.end_gradient;
    if (end != nullptr) load_state(lambda, end + state());
  }
  uint32_t phase = 0;
  for (int step = last - 1; step >= first; --step) {
    wait_barrier(loaded, phase);
    phase ^= 1;
    {
      Raw raw;
      load_raw<true, true>(raw, tilde.r, w_at, tilde.k, tilde.a, tilde.b);
      prepare<64, true, true, true, kGroupExpRow>(raw, p.tokens - step * kStep, tilde, shared.end,
                                                  shared.exp_c);
    }
    publish_shared();
    __syncthreads();
    const uint32_t* checkpoint =
        p.checkpoints +
        (static_cast<int64_t>(this_head()) * p.steps + step) * Sizes::kCheckpointWords;
    Frag start[4];
    load_checkpoint(start, checkpoint);
    causal_products<64, true, true>(tilde, small_at, shared.solve(), chain.lanes);
    publish_shared();
    __syncthreads();
    if (step > first) {
      if (threadIdx.x < Sizes::kCheckpointWords / 32)
        prefetch_l2(checkpoint - Sizes::kCheckpointWords + threadIdx.x * 32);
      if (threadIdx.x == 96) prefetch_step(maps, channel, (step - 1) * kStep, batch);
    }

    // U of both chunks, and the state between them.
    {
      const Frag v = load_frag_t(u_v_at + kTileBytes + own);
      const Frag u = solve_u<64>(chain, start, v, tilde.a, small_at, u_v_at + own);
      StateRows<64> s;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const uint32_t word = start[n >> 1].x[(n & 1) * 2 + (e >> 1)];
          s[n][e] = (e & 1) != 0 ? high_half(word) : low_half(word);
        }
      wgmma_begin();
      chain.outer(s, u, tilde.b);
      chain.outer(s, v, tilde.k);
      wgmma_commit();
      chain.finish(s);
      scale_columns(s, shared.end);
#pragma unroll
      for (int j = 0; j < 4; ++j) start[j] = pack_frag(s[2 * j], s[2 * j + 1]);
      solve_u<64>(chain, start, load_frag_t(u_v_at + 3 * kTileBytes + own), tilde.a + kTileBytes,
                  small_at + kSmalls * kSmallBytes, u_v_at + 2 * kTileBytes + own);
    }

#pragma unroll 1
    for (int c = 1; c >= 0; --c) {
      const auto rows = static_cast<uint32_t>(c * kTileBytes);
      const uint32_t dy_z = dy_z_at + 2 * rows, smalls = small_at + c * kSmalls * kSmallBytes;
      if (c == 0) load_checkpoint(start, checkpoint);
      Frag dv_bf16;
      {
        float dv[2][4] = {};
        Frag l[4];
        step_lambda<true, 64>(chain, lambda, load_frag_t(dy_z + own), tilde, rows, smalls,
                              shared.end + c * 64, dy_z + kTileBytes + own, dv, l, [&] {
                                if (threadIdx.x == 0) wait_tiles_read();
                                put_crossing(start, l, shared.crossing[warp]);
                                __syncthreads();  // the last chunk's gradients have left s0 and l
#pragma unroll
                                for (int j = 0; j < 4; ++j) {
                                  put_rows<64>(l_at, j, l[j]);
                                  put_rows<64>(s0_at, j, start[j]);
                                }
                              });
        dv_bf16 = pack_frag(dv[0], dv[1]);
      }
      publish_shared();
      __syncthreads();
      const GroupAddresses at{tilde.r + rows,
                              tilde.a + rows,
                              tilde.b + rows,
                              tilde.k + rows,
                              w_at + rows,
                              dy_z,
                              u_v_at + 2 * rows,
                              s0_at,
                              l_at,
                              smalls,  // in place of used-up matrices
                              shared.exp_c + c * kChunk * kGroupExpRow,
                              shared.crossing[0]};
      group_gradients(at, chain.lanes, dv_bf16, step == 0 && c == 0 && !p.has_s0);
      publish_shared();
      __syncthreads();
      if (threadIdx.x == 0) {
        if (c == 0 && step > first) load_step(maps, shared, channel, (step - 1) * kStep, batch);
        send_gradients(p, maps, s0_at, l_at, channel, step * kStep + c * kChunk, batch);
      }
    }
  }
  if (p.ds0 != nullptr && segment == 0)
    store_state(lambda, p.ds0 + state(), (p.add >> 6 & 1u) != 0);
  if constexpr (kQueue)
    if (first > 0) {
      store_state(lambda, p.handed + state());
      PieceQueue(p).finish(shared.head);
    }
  if (threadIdx.x == 0) wait_tiles();
}

template <int kN>
cudaError_t describe_group(BackwardMaps& maps, const BackwardParams& p, int batch) {
  static_assert(kN == 64);
  cudaError_t error = cudaSuccess;
  const auto describe_one = [&](CUtensorMap& map, const void* data, int tile_tokens) {
    if (data == nullptr || error != cudaSuccess) return;
    error =
        describe_vector(map, const_cast<void*>(data), batch, p.tokens, p.heads * 64, tile_tokens);
  };
  const void* const gradients[] = {p.dr, p.dw, p.dk, p.dv, p.da, p.db};
  for (int i = 0; i < 6; ++i) describe_one(maps.gradient[i], gradients[i], kChunk);
  describe_one(maps.v, p.in.v, kChunk);
  describe_one(maps.dy, p.dy, kChunk);
  describe_one(maps.r, p.in.r, kStep);
  describe_one(maps.w, p.in.w, kStep);
  describe_one(maps.k, p.in.k, kStep);
  describe_one(maps.a, p.in.a, kStep);
  describe_one(maps.b, p.in.b, kStep);
  return error;
}

/// Launches the kernel of the gradients for heads of 64.
template <int kN>
cudaError_t launch_group_backward(const BackwardParams& p, dim3 grid, bool few, bool overlap,
                                  int batch, cudaStream_t stream) {
  BackwardMaps maps{};
  if (const cudaError_t e = describe_group<kN>(maps, p, batch); e != cudaSuccess) return e;
  const auto kernel = few ? group_backward_kernel<kN, Head<kN>::kBackwardFew, false>
                          : group_backward_kernel<kN, Head<kN>::kBackwardMany, false>;
  return launch(kernel, grid, 128, sizeof(GroupShared), overlap, stream, p, maps);
}

/// The same on pieces of whole heads.
template <int kN>
cudaError_t launch_queue_backward(const BackwardParams& p, int streams, size_t queue_bytes,
                                  int batch, cudaStream_t stream) {
  BackwardMaps maps{};
  if (const cudaError_t e = describe_group<kN>(maps, p, batch); e != cudaSuccess) return e;
  if (const cudaError_t e = cudaMemsetAsync(p.queue, 0, queue_bytes, stream); e != cudaSuccess)
    return e;
  const dim3 grid(static_cast<unsigned>(streams), static_cast<unsigned>(p.segments));
  return launch(group_backward_kernel<kN, Head<kN>::kBackwardMany, true>, grid, 128,
                sizeof(GroupShared), false, stream, p, maps);
}

}  // namespace rwkv::cuda::chunk
