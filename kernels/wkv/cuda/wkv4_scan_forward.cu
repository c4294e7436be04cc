/// WKV-4 forward as an associative scan of max-stabilised elements (spec rwkv4 5.1, 5.3). A block
/// takes 32 channels of one sequence and a tile of tokens: threads of a warp lie along channels,
/// warps along time. A thread holds the k and v of its tokens in registers, folds them to an
/// element, gets what all tokens before them add up to, and runs them again behind that.
///
/// Few tiles: one block walks a sequence. Many: a block per tile, and elements pass from block to
/// block (look_back), so that every operand is read once and all of the GPU works on one sequence.

#include "kernels/wkv/cuda/wkv4_piece.cuh"
#include "kernels/wkv/cuda/wkv4_scan.h"
#include "kernels/wkv/cuda/wkv4_tile.cuh"

namespace rwkv::cuda {
namespace {

using namespace wkv4;  // NOLINT: device helpers of this op

constexpr int kTime = wkv4::kForwardTime;  // threads along time
template <bool kSums>
constexpr int kOwn = kSums ? wkv4::kForwardOwnSums : wkv4::kForwardOwn;  // tokens of a thread

/// kTogether: tiles that a block combines by itself; 0: it walks all tiles of its chain.
template <class T, bool kSums, int kTogether>
__global__ void __launch_bounds__(kLanes* kTime, kBlocks)
    forward_kernel(const Wkv4Shape s, const Wkv4Forward io, const Look look) {
  constexpr int kN = kOwn<kSums>, kTile = kTime * kN;
  __shared__ Board<Past, kTime> board;
  __shared__ float decay[kLanes];
  const int tiles = (s.tokens + kTile - 1) / kTile, row = static_cast<int>(threadIdx.y);
  unsigned chain = blockIdx.x;
  int tile = 0, end = tiles;
  if constexpr (kTogether > 0) {
    const unsigned chains = chains_of(s);
    tile = static_cast<int>(chain / chains);
    chain %= chains;
    end = tile + 1;
  }
  const Place at(s, chain);
  const float d = at.real ? decay_of(io.tau[at.c]) * kLog2E : 0.0f;
  const float u = at.real ? io.u[at.c] * kLog2E : 0.0f;
  if (row == 0) decay[threadIdx.x] = d;  // read behind the first barrier of the scan
  const int64_t stride = s.channels;
  const Past first = at.real ? first_past<Scale>(io, at.state) : Past{};
  Past carry = first;
  for (; tile < end; ++tile) {
    const int t0 = tile * kTile + row * kN;
    const int n = at.real ? max(0, min(kN, s.tokens - t0)) : 0;
    const int64_t base = (static_cast<int64_t>(at.b) * s.tokens + t0) * stride + at.c;
    const Column<T> k(io.k, base, s.channels), v(io.v, base, s.channels), y(io.y, base, s.channels);
    float ks[kN], vs[kN];
    load_tokens<kN>(n, k, ks, v, vs);
    scale_keys<kN>(n, ks);
    const Piece<kN> piece(ks, kSums ? n : 0, d, u);
    Past mine, total;
    if (piece.fits)
      mine = piece.fold(vs, n, d);
    else
      mine = Past::run(ks, vs, d);
    const Past ahead = scan_tile<Past, kTime>(board, decay, row, mine, kN, total);
    if constexpr (kTogether > 0)
      carry = look_back<kTogether, Past, kTime>(look, s, tiles, tile, at.b, at.c, board, decay, row,
                                                total, kTile, first);
    Past past = carry;
    past.join(ahead, static_cast<float>(row * kN), d);
    if (io.a_out != nullptr && n > 0 && t0 + n == s.tokens) {
      Past last = past;
      for (int i = 0; i < n; ++i) last.push(d, key_of(k.get(i)), v.get(i));
      store_last(io, at.state, last, d);
    }
    float* saved = nullptr;
    if (io.saved != nullptr && n > 0) saved = io.saved + saved_at(s, at.b, t0, at.c);
    if (piece.takes(past, d)) {
      if (saved != nullptr) {
        store_rows(saved, stride, past, d);
        saved[3 * stride] = 0;
      }
      const float start = piece.start(past, d);
      float sum_v = past.a * start, sum = past.b * start;
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (i >= n) break;
        const float own = piece.bonus * piece.e[i];
        y.set(i, (sum_v + own * vs[i]) * reciprocal(sum + own));
        sum_v += piece.e[i] * vs[i];
        sum += piece.e[i];
      }
    } else {
      const auto walk = [&](bool all) {
        const int m = fresh(n);
#pragma unroll
        for (int i = 0; i < kN; ++i) {
          if (i % kSavedEvery == 0 && (all || i < m) && saved != nullptr) {
            store_rows(saved, stride, past, d);
            if (kSums) saved[3 * stride] = n > 1 ? static_cast<float>(n) : 0.0f;
            saved += saved_rows(s) * stride;
          }
          if (all || i < m) y.set(i, Readout(past, d, u + ks[i], vs[i]).y);
          past.push(d, ks[i], vs[i]);
        }
      };
      if (n == kN)
        walk(true);
      else
        walk(false);
    }
    if constexpr (kTogether == 0) carry.join(total, kTile, d);
  }
}

template <class T, bool kSums>
cudaError_t forward(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  const dim3 block(kLanes, kTime);
  const int tiles = forward_tiles(s);
  const unsigned chains = chains_of(s), all = chains * static_cast<unsigned>(tiles);
  if (s.ahead == 0) {
    forward_kernel<T, kSums, 0><<<chains, block, 0, stream>>>(s, io, Look{});
    return cudaGetLastError();
  }
  const cudaError_t error =
      cudaMemsetAsync(io.workspace, 0, look_bytes<Past>(s, tiles, s.ahead), stream);
  if (error != cudaSuccess) return error;
  const Look look = look_at<Past>(io.workspace, s, tiles, s.ahead);
  if (s.ahead == 1)
    forward_kernel<T, kSums, 1><<<all, block, 0, stream>>>(s, io, look);
  else
    forward_kernel<T, kSums, kGroup><<<all, block, 0, stream>>>(s, io, look);
  return cudaGetLastError();
}

}  // namespace

int wkv4::forward_tiles(const Wkv4Shape& s) {
  const int tile = kTime * (s.sums ? kOwn<true> : kOwn<false>);
  return (s.tokens + tile - 1) / tile;
}

size_t wkv4::forward_workspace_bytes(const Wkv4Shape& s) {
  return look_bytes<Past>(s, forward_tiles(s), s.ahead);
}

size_t wkv4_scan_saved_bytes(const Wkv4Shape& s) {
  const int segments = (s.tokens + kSavedEvery - 1) / kSavedEvery;
  return sizeof(float) * static_cast<size_t>(saved_rows(s)) * static_cast<size_t>(s.batch) *
         static_cast<size_t>(segments) * static_cast<size_t>(s.channels);
}

cudaError_t wkv4_scan_forward(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  if (s.sums)
    return s.f32 ? forward<float, true>(s, io, stream)
                 : forward<__nv_bfloat16, true>(s, io, stream);
  return s.f32 ? forward<float, false>(s, io, stream)
               : forward<__nv_bfloat16, false>(s, io, stream);
}

}  // namespace rwkv::cuda
