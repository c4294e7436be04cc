/// WKV-4 as an associative scan of max-stabilised elements (spec rwkv4 5.1, 5.3). A block takes 32
/// channels of one sequence and walks tiles of 128 tokens: 16 threads per channel along time hold 8
/// tokens each. Per tile a thread folds its tokens to an element, the elements of each channel are
/// scanned by 16 lanes (CUB), and every thread runs its tokens again, from registers, behind the
/// state it got. The backward redoes that from the state saved ahead of the tile and then does the
/// same in reversed time, with elements that carry the derivatives by the decay.
///
/// Few blocks leave a GPU idle: with parts > 1 the sequence is cut. A first pass finds the element
/// of each part, a second combines them per channel, a third runs all parts from their states. One
/// part reads every operand once (k, v of the backward stay in registers), so that memory limits
/// it; several read k and v (backward: all operands) twice.

#include <cub/warp/warp_scan.cuh>

#include "kernels/wkv/cuda/wkv4_common.cuh"
#include "kernels/wkv/cuda/wkv4_piece.cuh"

namespace rwkv::cuda {
namespace {

using namespace wkv4;  // NOLINT: device helpers of this op

constexpr int kLanes = 32;  // channels of a block
constexpr int kTime = 16;   // threads along time
constexpr int kOwn = 8;     // tokens of a thread
constexpr int kTile = kTime * kOwn;

int tiles_of(int tokens) {
  return (tokens + kTile - 1) / kTile;
}

/// A run of tokens, seen from its end (Past) or its begin (Future).
template <class State>
struct Run {
  State state;
  float tokens = 0;
};
struct Append {
  float d;
  __device__ __forceinline__ Run<Past> operator()(Run<Past> first, const Run<Past>& second) const {
    first.state.append(d, second.tokens, second.state);
    first.tokens += second.tokens;
    return first;
  }
};
struct Prepend {
  float d;
  __device__ __forceinline__ Run<Future> operator()(Run<Future> later,
                                                    const Run<Future>& earlier) const {
    later.state.prepend(d, earlier.tokens, earlier.state);
    later.tokens += earlier.tokens;
    return later;
  }
};

/// Elements of a tile: [order in time][channel], one padding column against bank conflicts.
template <class State>
struct Board {
  Run<State> cell[kTime][kLanes + 1];
  Run<State> total[kLanes];
};

/// For every thread what all threads of its channel ahead of it (`order` below its own) add up to;
/// `total` is all of them. `decay`: d of the block's channels in shared memory.
template <class State, class Op>
__device__ __forceinline__ Run<State> scan_tile(
    Board<State>& board, typename cub::WarpScan<Run<State>, kTime>::TempStorage* temp,
    const float* decay, int order, const Run<State>& mine, Run<State>& total) {
  const int lane = static_cast<int>(threadIdx.x), row = static_cast<int>(threadIdx.y);
  board.cell[order][lane] = mine;
  __syncthreads();
  // A half warp per channel: its lanes are the threads along time.
  const int group = 2 * row + lane / kTime, time = lane % kTime;
  const Run<State> in = board.cell[time][group];
  Run<State> ahead, inclusive;
  cub::WarpScan<Run<State>, kTime>(temp[group])
      .Scan(in, inclusive, ahead, Run<State>{}, Op{decay[group]});
  board.cell[time][group] = ahead;
  if (time == kTime - 1) board.total[group] = inclusive;
  __syncthreads();
  const Run<State> got = board.cell[order][lane];
  total = board.total[lane];
  return got;
}

/// Rows saved per tile: the state ahead of it and, for cumsum, tokens computed by the recurrence.
template <bool kSums>
inline constexpr int kSavedRows = kSums ? 4 : 3;

/// Where a block works.
struct Place {
  int b, part, c, tiles, first_tile, end_tile;
  bool real;  ///< the channel exists
  int64_t state, stride;
  __device__ Place(const Wkv4Shape& s)
      : b(static_cast<int>(blockIdx.y)),
        part(static_cast<int>(blockIdx.z)),
        c(static_cast<int>(blockIdx.x) * kLanes + static_cast<int>(threadIdx.x)),
        tiles((s.tokens + kTile - 1) / kTile),
        real(c < s.channels),
        state(static_cast<int64_t>(b) * s.channels + c),
        stride(s.channels) {
    const int each = (tiles + s.parts - 1) / s.parts;
    first_tile = min(tiles, part * each);
    end_tile = min(tiles, first_tile + each);
  }
};

/// Rows (kRows, C) of a part.
template <int kRows>
__device__ __forceinline__ int64_t part_row(const Wkv4Shape& s, int b, int part, int c) {
  return (static_cast<int64_t>(b) * s.parts + part) * kRows * s.channels + c;
}
__device__ __forceinline__ int part_tokens(const Wkv4Shape& s, int part) {
  const int tiles = (s.tokens + kTile - 1) / kTile, each = (tiles + s.parts - 1) / s.parts;
  return max(0, min(s.tokens, (part + 1) * each * kTile) - min(s.tokens, part * each * kTile));
}
__device__ __forceinline__ void store_future(float* to, int channels, const Future& f, float d) {
  const int64_t c = channels;
  to[0] = f.x;
  to[c] = f.z;
  to[2 * c] = f.xd;
  to[3 * c] = f.zd;
  to[4 * c] = f.scale.at(d);
}
__device__ __forceinline__ Future load_future(const float* from, int channels) {
  const int64_t c = channels;
  return {from[0], from[c], from[2 * c], from[3 * c], {from[4 * c], 0.0f}};
}

// --- forward
// --------------------------------------------------------------------------------------

/// kFold: finds the element of a part and writes it to `parts`; else runs the part from the state
/// in `parts` (null: one part, from the incoming state).
template <class T, bool kSums, bool kFold>
__global__ void __launch_bounds__(kLanes* kTime, 2)
    forward_kernel(const Wkv4Shape s, const Wkv4Forward io, float* parts) {
  __shared__ Board<Past> board;
  __shared__ typename cub::WarpScan<Run<Past>, kTime>::TempStorage temp[kLanes];
  __shared__ float decay[kLanes];
  const Place at(s);
  const int row = static_cast<int>(threadIdx.y);
  const float d = at.real ? decay_of(io.tau[at.c]) : 0.0f, u = at.real ? io.u[at.c] : 0.0f;
  if (row == 0) decay[threadIdx.x] = d;  // read behind the first barrier of scan_tile
  [[maybe_unused]] __shared__ int replaced[kLanes];
  const auto* k = static_cast<const T*>(io.k);
  const auto* v = static_cast<const T*>(io.v);
  auto* y = static_cast<T*>(io.y);
  Past carry;
  if (!kFold && at.real) {
    carry = parts == nullptr ? first_past(io.a0, io.b0, io.p0, at.state)
                             : load_rows(parts + part_row<3>(s, at.b, at.part, at.c), s.channels);
  }
  for (int tile = at.first_tile; tile < at.end_tile; ++tile) {
    const int t0 = tile * kTile + row * kOwn;
    const int n = at.real ? max(0, min(kOwn, s.tokens - t0)) : 0;
    const int64_t base = (static_cast<int64_t>(at.b) * s.tokens + t0) * at.stride + at.c;
    float ks[kOwn], vs[kOwn];
    Run<Past> mine;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      ks[i] = i < n ? widen(k[base + i * at.stride]) : 0.0f;
      vs[i] = i < n ? widen(v[base + i * at.stride]) : 0.0f;
    }
    const Piece<kOwn> piece(ks, kSums ? n : 0, d, u);
    if (piece.fits) {
      mine.state = piece.fold(vs, n, d);
    } else {
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
        if (i < n) mine.state.push(d, ks[i], vs[i]);
    }
    mine.tokens = static_cast<float>(n);
    if (kSums && row == 0) replaced[threadIdx.x] = 0;  // counted behind the barriers of the scan
    Run<Past> total;
    const Run<Past> ahead = scan_tile<Past, Append>(board, temp, decay, row, mine, total);
    if constexpr (!kFold) {
      float* saved = nullptr;
      if (io.saved != nullptr && row == 0 && at.real) {
        saved = io.saved +
                (static_cast<int64_t>(at.b) * at.tiles + tile) * kSavedRows<kSums> * at.stride +
                at.c;
        store_rows(saved, s.channels, carry, d);
      }
      Past past = carry;
      past.append(d, ahead.tokens, ahead.state);
      if (piece.takes(past, d)) {
        const float start = piece.start(past, d);
        float sum_v = past.a * start, sum = past.b * start;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          if (i >= n) break;
          const float own = piece.bonus * piece.e[i];
          put(y + base + i * at.stride, (sum_v + own * vs[i]) / (sum + own));
          sum_v += piece.e[i] * vs[i];
          sum += piece.e[i];
        }
      } else {
        if (kSums && n > 1) atomicAdd(&replaced[threadIdx.x], n);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          if (i >= n) break;
          put(y + base + i * at.stride, Readout(past, d, u + ks[i], vs[i]).y);
          past.push(d, ks[i], vs[i]);
        }
      }
      if constexpr (kSums) {
        __syncthreads();
        if (saved != nullptr) saved[3 * at.stride] = static_cast<float>(replaced[threadIdx.x]);
      }
    }
    carry.append(d, total.tokens, total.state);
    __syncthreads();  // the board is read before it is written again
  }
  if (row != 0 || !at.real) return;
  if constexpr (kFold) {
    store_rows(parts + part_row<3>(s, at.b, at.part, at.c), s.channels, carry, d);
  } else if (io.a_out != nullptr && at.end_tile == at.tiles &&
             (at.first_tile < at.end_tile || at.part == 0)) {
    io.a_out[at.state] = carry.a;
    io.b_out[at.state] = carry.b;
    io.p_out[at.state] = carry.scale.at(d);
  }
}

/// Elements of the parts -> states ahead of them. A thread per (sequence, channel).
__global__ void combine_pasts(const Wkv4Shape s, const Wkv4Forward io,
                              const float* __restrict__ folded, float* __restrict__ states) {
  const int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int b = static_cast<int>(blockIdx.y);
  if (c >= s.channels) return;
  const float d = decay_of(io.tau[c]);
  Past past = first_past(io.a0, io.b0, io.p0, static_cast<int64_t>(b) * s.channels + c);
#pragma unroll 4
  for (int part = 0; part < s.parts; ++part) {
    const int64_t row = part_row<3>(s, b, part, c);
    store_rows(states + row, s.channels, past, d);
    past.append(d, static_cast<float>(part_tokens(s, part)), load_rows(folded + row, s.channels));
  }
}

// --- backward
// -------------------------------------------------------------------------------------

template <class T, bool kSums, bool kFold>
__global__ void __launch_bounds__(kLanes* kTime, 1)
    backward_kernel(const Wkv4Shape s, const Wkv4Backward io, float* parts, float* partials) {
  __shared__ Board<Past> pasts;
  __shared__ Board<Future> futures;
  __shared__ union {
    typename cub::WarpScan<Run<Past>, kTime>::TempStorage past[kLanes];
    typename cub::WarpScan<Run<Future>, kTime>::TempStorage future[kLanes];
  } temp;
  __shared__ float decay[kLanes];
  const Place at(s);
  const int row = static_cast<int>(threadIdx.y);
  const float d = at.real ? decay_of(io.tau[at.c]) : 0.0f, u = at.real ? io.u[at.c] : 0.0f;
  if (row == 0) decay[threadIdx.x] = d;
  const auto* k = static_cast<const T*>(io.k);
  const auto* v = static_cast<const T*>(io.v);
  const auto* dy = static_cast<const T*>(io.dy);
  Future carry;
  if (!kFold && at.real) {
    carry = parts == nullptr ? last_future(io, at.state)
                             : load_future(parts + part_row<5>(s, at.b, at.part, at.c), s.channels);
  }
  float sum_d = 0, sum_u = 0;
  for (int tile = at.end_tile - 1; tile >= at.first_tile; --tile) {
    const int t0 = tile * kTile + row * kOwn;
    const int n = at.real ? max(0, min(kOwn, s.tokens - t0)) : 0;
    const int64_t base = (static_cast<int64_t>(at.b) * s.tokens + t0) * at.stride + at.c;
    float ks[kOwn], vs[kOwn], ys[kOwn], hs[kOwn], qs[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const bool there = i < n;
      ks[i] = there ? widen(k[base + i * at.stride]) : 0.0f;
      vs[i] = there ? widen(v[base + i * at.stride]) : 0.0f;
      hs[i] = there ? widen(dy[base + i * at.stride]) : 0.0f;
      ys[i] = qs[i] = 0;
    }
    // Forward again: y before it was rounded, scales and gradients of the denominators.
    const Piece<kOwn> piece(ks, kSums ? n : 0, d, u);
    bool sums = false;
    float smallest = 1;
    {
      Run<Past> mine, total;
      if (piece.fits) {
        mine.state = piece.fold(vs, n, d);
      } else {
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
          if (i < n) mine.state.push(d, ks[i], vs[i]);
      }
      mine.tokens = static_cast<float>(n);
      const Run<Past> ahead = scan_tile<Past, Append>(pasts, temp.past, decay, row, mine, total);
      Past past;
      if (at.real)
        past = load_rows(
            io.saved +
                (static_cast<int64_t>(at.b) * at.tiles + tile) * kSavedRows<kSums> * at.stride +
                at.c,
            s.channels);
      past.append(d, ahead.tokens, ahead.state);
      sums = piece.takes(past, d);
      if (sums) {
        smallest = piece.divide(vs, ys, hs, n, past, d);
      } else {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          if (i >= n) break;
          const Readout read(past, d, u + ks[i], vs[i]);
          ys[i] = read.y;
          qs[i] = read.q;
          hs[i] *= read.inverse;
          past.push(d, ks[i], vs[i]);
        }
      }
    }
    __syncthreads();  // temp changes hands
    Run<Future> mine, total;
    if (sums) {
      mine.state = piece.fold_back(hs, ys, n, d, smallest);
    } else {
#pragma unroll
      for (int i = kOwn - 1; i >= 0; --i)
        if (i < n) mine.state.push(d, qs[i], hs[i], ys[i]);
    }
    mine.tokens = static_cast<float>(n);
    const Run<Future> ahead =
        scan_tile<Future, Prepend>(futures, temp.future, decay, kTime - 1 - row, mine, total);
    if constexpr (!kFold) {
      Future future = carry;
      future.prepend(d, ahead.tokens, ahead.state);
      if (sums) {  // reversed cumulative sums, and sums of these for the decay
        const float start = expf(piece.anchor + static_cast<float>(n - 1) * d + future.scale.at(d));
        float r = start * future.x, rz = start * future.z;
        float rd = start * future.xd, rzd = start * future.zd;
#pragma unroll
        for (int i = kOwn - 1; i >= 0; --i) {
          if (i >= n) continue;
          const float e = piece.e[i], f = piece.bonus * e * hs[i], own = f * (vs[i] - ys[i]);
          put_gradient(static_cast<T*>(io.dk), base + i * at.stride, own + e * (r * vs[i] + rz),
                       io.add, kDk);
          put_gradient(static_cast<T*>(io.dv), base + i * at.stride, f + e * r, io.add, kDv);
          sum_d += e * (rd * vs[i] + rzd);
          sum_u += own;
          rd += r;
          rzd += rz;
          r += hs[i];
          rz -= hs[i] * ys[i];
        }
      } else {
#pragma unroll
        for (int i = kOwn - 1; i >= 0; --i) {
          if (i >= n) continue;
          const TokenGradient g(future, d, u, ks[i], vs[i], ys[i], qs[i], hs[i]);
          put_gradient(static_cast<T*>(io.dk), base + i * at.stride, g.dk, io.add, kDk);
          put_gradient(static_cast<T*>(io.dv), base + i * at.stride, g.dv, io.add, kDv);
          sum_d += g.dd;
          sum_u += g.du;
          future.push(d, qs[i], hs[i], ys[i]);
        }
      }
    }
    carry.prepend(d, total.tokens, total.state);
    __syncthreads();
  }
  if constexpr (kFold) {
    if (row == 0 && at.real)
      store_future(parts + part_row<5>(s, at.b, at.part, at.c), s.channels, carry, d);
  } else {
    if (row == 0 && at.real && at.part == 0) sum_d += state_gradient(io, at.state, d, carry);
    // Sums over the threads of a channel, in order.
    __shared__ float fold[2][kTime][kLanes];
    fold[0][row][threadIdx.x] = sum_d;
    fold[1][row][threadIdx.x] = sum_u;
    __syncthreads();
    if (row >= 2 || !at.real) return;
    double total = 0;
    for (int i = 0; i < kTime; ++i) total += static_cast<double>(fold[row][i][threadIdx.x]);
    partials[part_row<2>(s, at.b, at.part, at.c) + row * at.stride] = static_cast<float>(total);
  }
}

__global__ void combine_futures(const Wkv4Shape s, const Wkv4Backward io,
                                const float* __restrict__ folded, float* __restrict__ states) {
  const int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int b = static_cast<int>(blockIdx.y);
  if (c >= s.channels) return;
  const float d = decay_of(io.tau[c]);
  Future future = last_future(io, static_cast<int64_t>(b) * s.channels + c);
#pragma unroll 4
  for (int part = s.parts - 1; part >= 0; --part) {
    const int64_t row = part_row<5>(s, b, part, c);
    store_future(states + row, s.channels, future, d);
    future.prepend(d, static_cast<float>(part_tokens(s, part)),
                   load_future(folded + row, s.channels));
  }
}

// --- launches
// -------------------------------------------------------------------------------------

dim3 grid_of(const Wkv4Shape& s) {
  return dim3(static_cast<unsigned>((s.channels + kLanes - 1) / kLanes),
              static_cast<unsigned>(s.batch), static_cast<unsigned>(s.parts));
}
dim3 combine_grid(const Wkv4Shape& s) {
  return dim3(static_cast<unsigned>((s.channels + kLanes - 1) / kLanes),
              static_cast<unsigned>(s.batch));
}

/// Floats of `rows` rows of channels per part.
size_t part_floats(const Wkv4Shape& s, int rows) {
  return static_cast<size_t>(s.batch) * static_cast<size_t>(s.parts) * static_cast<size_t>(rows) *
         static_cast<size_t>(s.channels);
}

template <class T, bool kSums>
cudaError_t forward(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  const dim3 block(kLanes, kTime);
  float* states = nullptr;
  if (s.parts > 1) {
    auto* folded = static_cast<float*>(io.workspace);
    states = folded + part_floats(s, 3);
    forward_kernel<T, kSums, true><<<grid_of(s), block, 0, stream>>>(s, io, folded);
    combine_pasts<<<combine_grid(s), kLanes, 0, stream>>>(s, io, folded, states);
  }
  forward_kernel<T, kSums, false><<<grid_of(s), block, 0, stream>>>(s, io, states);
  return cudaGetLastError();
}

template <class T, bool kSums>
cudaError_t backward(const Wkv4Shape& s, const Wkv4Backward& io, cudaStream_t stream) {
  const dim3 block(kLanes, kTime);
  auto* partials = static_cast<float*>(io.workspace);
  float* states = nullptr;
  if (s.parts > 1) {
    float* folded = partials + part_floats(s, 2);
    states = folded + part_floats(s, 5);
    backward_kernel<T, kSums, true><<<grid_of(s), block, 0, stream>>>(s, io, folded, nullptr);
    combine_futures<<<combine_grid(s), kLanes, 0, stream>>>(s, io, folded, states);
  }
  backward_kernel<T, kSums, false><<<grid_of(s), block, 0, stream>>>(s, io, states, partials);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return wkv4_param_gradients(partials, s.batch * s.parts, s.channels, io, stream);
}

}  // namespace

int wkv4_scan_parts(const Wkv4Shape& s, int multiprocessors) {
  const int blocks = s.batch * ((s.channels + kLanes - 1) / kLanes);
  const int wanted = (2 * multiprocessors + blocks - 1) / blocks;
  const int parts = blocks >= multiprocessors ? 1 : wanted;
  return parts < tiles_of(s.tokens) ? parts : tiles_of(s.tokens);
}

size_t wkv4_scan_saved_bytes(const Wkv4Shape& s) {
  return sizeof(float) * (s.sums ? 4 : 3) * static_cast<size_t>(s.batch) *
         static_cast<size_t>(tiles_of(s.tokens)) * static_cast<size_t>(s.channels);
}

size_t wkv4_scan_workspace_bytes(const Wkv4Shape& s) {
  return sizeof(float) * part_floats(s, s.parts > 1 ? 12 : 2);
}

cudaError_t wkv4_scan_forward(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  if (s.sums)
    return s.f32 ? forward<float, true>(s, io, stream)
                 : forward<__nv_bfloat16, true>(s, io, stream);
  return s.f32 ? forward<float, false>(s, io, stream)
               : forward<__nv_bfloat16, false>(s, io, stream);
}

cudaError_t wkv4_scan_backward(const Wkv4Shape& s, const Wkv4Backward& io, cudaStream_t stream) {
  if (s.sums)
    return s.f32 ? backward<float, true>(s, io, stream)
                 : backward<__nv_bfloat16, true>(s, io, stream);
  return s.f32 ? backward<float, false>(s, io, stream)
               : backward<__nv_bfloat16, false>(s, io, stream);
}

}  // namespace rwkv::cuda
