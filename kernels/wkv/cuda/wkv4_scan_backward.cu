/// WKV-4 backward as an associative scan in reversed time (spec rwkv4 4.1, 5.1), built as the
/// forward is. A thread finds y and the denominators of its 8 tokens again from the state that the
/// forward saved ahead of them, folds their gradients to an element that carries the derivatives by
/// the decay as well, gets what all later tokens add up to, and walks its tokens from last to
/// first.

#include "kernels/wkv/cuda/wkv4_piece.cuh"
#include "kernels/wkv/cuda/wkv4_scan.h"
#include "kernels/wkv/cuda/wkv4_tile.cuh"

namespace rwkv::cuda {
namespace {

using namespace wkv4;  // NOLINT: device helpers of this op

constexpr int kTime = wkv4::kBackwardTime;  // threads along time
constexpr int kOwn = kSavedEvery;           // tokens of a thread
constexpr int kTile = kTime * kOwn;

/// kTogether: tiles that a block combines by itself; 0: it walks all tiles of its chain.
template <class T, bool kSums, int kTogether>
__global__ void __launch_bounds__(kLanes* kTime, kBlocks)
    backward_kernel(const Wkv4Shape s, const Wkv4Backward io, const Look look, float* partials) {
  __shared__ Board<Future, kTime> board;
  __shared__ float decay[kLanes];
  const int tiles = (s.tokens + kTile - 1) / kTile;
  const int row = static_cast<int>(threadIdx.y), order = kTime - 1 - row;
  unsigned chain = blockIdx.x;
  int step = 0, end = tiles;  // steps go back in time
  if constexpr (kTogether > 0) {
    const unsigned chains = chains_of(s);
    step = static_cast<int>(chain / chains);
    chain %= chains;
    end = step + 1;
  }
  const Place at(s, chain);
  const float d = at.real ? decay_of(io.tau[at.c]) * kLog2E : 0.0f;
  const float u = at.real ? io.u[at.c] * kLog2E : 0.0f;
  if (row == 0) decay[threadIdx.x] = d;
  const int64_t stride = s.channels;
  // Both gradients are wanted, and nothing is added.
  const bool plain =
      io.dk != nullptr && io.dv != nullptr && (io.add & (1u << kDk | 1u << kDv)) == 0;
  Future carry;
  float sum_d = 0, sum_u = 0;
  for (; step < end; ++step) {
    const int t0 = (tiles - 1 - step) * kTile + row * kOwn;
    const int n = at.real ? max(0, min(kOwn, s.tokens - t0)) : 0;
    const int64_t base = (static_cast<int64_t>(at.b) * s.tokens + t0) * stride + at.c;
    float ks[kOwn], vs[kOwn], ys[kOwn], hs[kOwn], qs[kOwn];
    load_tokens<kOwn>(n, Column<T>(io.k, base, s.channels), ks, Column<T>(io.v, base, s.channels),
                      vs, Column<T>(io.dy, base, s.channels), hs);
    Past past;
    if (n > 0) past = load_rows<Scale>(io.saved + saved_at(s, at.b, t0, at.c), stride);
    scale_keys<kOwn>(n, ks);
    // Nothing comes after the last token but the gradients of the outgoing state.
    const bool last = n > 0 && t0 + n == s.tokens;
    Future mine, total;
    const Piece<kOwn> piece(ks, kSums ? n : 0, d, u);
    const bool sums = piece.takes(past, d);
    if (sums) {
      const float smallest = piece.divide(vs, ys, hs, n, past, d);
      mine = piece.fold_back(hs, ys, n, d, smallest);
    } else {
      const int m = fresh(n);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const Readout read(past, d, u + ks[i], vs[i]);
        ys[i] = read.y;
        qs[i] = i < m ? read.q : -kNoScale;  // no scale is raised by what is not there
        hs[i] *= read.inverse;
        if (i + 1 < kOwn) past.push(d, ks[i], vs[i]);
      }
      mine = Future::run(qs, hs, ys, d);
    }
    if (last && io.a0 != nullptr) {
      Future all = last_future<Scale>(io, at.state);
      all.join(mine, static_cast<float>(n), d);
      mine = all;
    }
    const Future ahead = scan_tile<Future, kTime>(board, decay, order, mine, kOwn, total);
    if constexpr (kTogether > 0)
      carry = look_back<kTogether, Future, kTime>(look, s, tiles, step, at.b, at.c, board, decay,
                                                  order, total, kTile, Future{});
    Future future = carry;
    future.join(ahead, static_cast<float>(order * kOwn), d);
    if (last) future = last_future<Scale>(io, at.state);
    // Gradients take the places of k and v.
    if (sums) {  // reversed cumulative sums, and sums of these for the decay
      const float start = pow2(piece.anchor + static_cast<float>(n - 1) * d + future.scale.at(d));
      float r = start * future.x, rz = start * future.z;
      float rd = start * future.xd, rzd = start * future.zd;
#pragma unroll
      for (int i = kOwn - 1; i >= 0; --i) {
        if (i >= n) continue;
        const float e = piece.e[i], f = piece.bonus * e * hs[i], own = f * (vs[i] - ys[i]);
        ks[i] = own + e * (r * vs[i] + rz);
        sum_d += e * (rd * vs[i] + rzd);
        sum_u += own;
        vs[i] = f + e * r;
        rd += r;
        rzd += rz;
        r += hs[i];
        rz -= hs[i] * ys[i];
      }
    } else {
      const auto walk = [&](bool all) {
        const int m = fresh(n);
#pragma unroll
        for (int i = kOwn - 1; i >= 0; --i) {
          if (!all && i >= m) continue;
          const TokenGradient g(future, d, ks[i], vs[i], ys[i], hs[i]);
          sum_d += g.dd;
          sum_u += g.du;
          if (i > 0) future.push(d, qs[i], hs[i], ys[i]);
          ks[i] = g.dk;
          vs[i] = g.dv;
        }
      };
      if (n == kOwn)
        walk(true);
      else
        walk(false);
    }
    if (plain && n == kOwn) {
      const Column<T> dk(io.dk, base, s.channels), dv(io.dv, base, s.channels);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        dk.set(i, ks[i]);
        dv.set(i, vs[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (i >= n) break;
        put_gradient(static_cast<T*>(io.dk), base + i * stride, ks[i], io.add, kDk);
        put_gradient(static_cast<T*>(io.dv), base + i * stride, vs[i], io.add, kDv);
      }
    }
    if (t0 == 0 && at.real) {
      Future all = carry;
      all.join(total, kTile, d);
      sum_d += state_gradient(io, at.state, d, all);
    }
    if constexpr (kTogether == 0) carry.join(total, kTile, d);
  }
  __shared__ float fold[2][kTime][kLanes];
  const int64_t part = kTogether > 0 ? static_cast<int64_t>(at.b) * tiles + end - 1 : at.b;
  sum_channels<kTime>(fold, sum_d, sum_u, at.real, partials + 2 * part * stride + at.c, stride);
}

/// Floats of partial sums and of what their reduction needs.
size_t partial_floats(const Wkv4Shape& s, int tiles) {
  const size_t rows = static_cast<size_t>(s.batch) * static_cast<size_t>(s.back > 0 ? tiles : 1);
  return 2 * (rows + kParamScratchRows) * static_cast<size_t>(s.channels);
}

template <class T, bool kSums>
cudaError_t backward(const Wkv4Shape& s, const Wkv4Backward& io, cudaStream_t stream) {
  const dim3 block(kLanes, kTime);
  const int tiles = backward_tiles(s);
  const unsigned chains = chains_of(s), all = chains * static_cast<unsigned>(tiles);
  const int rows = s.batch * (s.back > 0 ? tiles : 1);
  const size_t mail = look_bytes<Future>(s, tiles, s.back);
  auto* partials = reinterpret_cast<float*>(static_cast<char*>(io.workspace) + mail);
  if (s.back == 0) {
    backward_kernel<T, kSums, 0><<<chains, block, 0, stream>>>(s, io, Look{}, partials);
  } else {
    const cudaError_t error = cudaMemsetAsync(io.workspace, 0, mail, stream);
    if (error != cudaSuccess) return error;
    const Look look = look_at<Future>(io.workspace, s, tiles, s.back);
    if (s.back == 1)
      backward_kernel<T, kSums, 1><<<all, block, 0, stream>>>(s, io, look, partials);
    else
      backward_kernel<T, kSums, kGroup><<<all, block, 0, stream>>>(s, io, look, partials);
  }
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return param_gradients(partials, rows, s.channels, io,
                         partials + 2 * static_cast<int64_t>(rows) * s.channels, stream);
}

}  // namespace

int wkv4::backward_tiles(const Wkv4Shape& s) {
  return (s.tokens + kTile - 1) / kTile;
}

size_t wkv4::backward_workspace_bytes(const Wkv4Shape& s) {
  const int tiles = backward_tiles(s);
  return look_bytes<Future>(s, tiles, s.back) + sizeof(float) * partial_floats(s, tiles);
}

size_t wkv4_scan_workspace_bytes(const Wkv4Shape& s) {
  const size_t forward = forward_workspace_bytes(s), backward = backward_workspace_bytes(s);
  return forward > backward ? forward : backward;
}

void wkv4_scan_plan(Wkv4Shape& s) {
  const unsigned chains = chains_of(s);
  const auto group = [&](int tiles, int walked, unsigned many) {
    if (tiles <= (chains >= kFullGpu ? walked : kWalkedTiles)) return 0;
    return tiles <= kFewTiles || chains >= many ? 1 : kGroup;
  };
  s.ahead = group(forward_tiles(s), kForwardWalked, kForwardChains);
  s.back = group(backward_tiles(s), kBackwardWalked, kBackwardChains);
}

cudaError_t wkv4_scan_backward(const Wkv4Shape& s, const Wkv4Backward& io, cudaStream_t stream) {
  if (s.sums)
    return s.f32 ? backward<float, true>(s, io, stream)
                 : backward<__nv_bfloat16, true>(s, io, stream);
  return s.f32 ? backward<float, false>(s, io, stream)
               : backward<__nv_bfloat16, false>(s, io, stream);
}

}  // namespace rwkv::cuda
