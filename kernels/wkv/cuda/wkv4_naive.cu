/// WKV-4 by cumulative sums of exponentially weighted values over whole sequences (spec rwkv4 6),
/// for comparison: one anchor per sequence and channel, in the middle of its exponents. The sums
/// are scanned as the elements of wkv4_scan_*.cu are, with plain additions in place of rescaling.
/// With i the index of a token and c the anchor, E_i = 2^(k_i - i d - c).

#include "kernels/wkv/cuda/wkv4_scan.h"
#include "kernels/wkv/cuda/wkv4_tile.cuh"

namespace rwkv::cuda {
namespace {

using namespace wkv4;  // NOLINT: device helpers of this op

constexpr int kTime = 16;          // threads along time
constexpr int kOwn = kSavedEvery;  // tokens of a thread
constexpr int kTile = kTime * kOwn;

/// Sums over past tokens of E v and E.
struct Sums {
  float v = 0, e = 0;
  __device__ __forceinline__ void join(const Sums& later, float, float) {
    v += later.v;
    e += later.e;
  }
};
/// Sums over future tokens of h and -h y, and sums of these sums.
struct Futures {
  float r = 0, rz = 0, rd = 0, rzd = 0;
  __device__ __forceinline__ void push(float h, float y) {
    rd += r;
    rzd += rz;
    r += h;
    rz -= h * y;
  }
  __device__ __forceinline__ void join(const Futures& earlier, float tokens, float) {
    rd += tokens * r + earlier.rd;
    rzd += tokens * rz + earlier.rzd;
    r += earlier.r;
    rz += earlier.rz;
  }
};

/// Order-preserving numbers for atomic minima and maxima, which give the same bits in any order.
__device__ __forceinline__ int ordered(float x) {
  const int i = __float_as_int(x);
  return i >= 0 ? i : i ^ 0x7fffffff;
}
__device__ __forceinline__ float unordered(int i) {
  return __int_as_float(i >= 0 ? i : i ^ 0x7fffffff);
}

__global__ void no_ranges_kernel(const Wkv4Shape s, int* ranges) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), n = s.batch * s.channels;
  if (i >= n) return;
  ranges[i] = ordered(3e38f);
  ranges[n + i] = ordered(-3e38f);
}

/// Lowest and highest exponent before an anchor is taken off (low, then high: (B, C) each). The
/// incoming state, decayed once, counts where it is large, with the size of its sums.
template <class T>
__global__ void ranges_kernel(const Wkv4Shape s, const Wkv4Forward io, int* ranges) {
  const Place at(s, blockIdx.x);
  if (!at.real) return;
  const float d = decay_of(io.tau[at.c]) * kLog2E, bonus = io.u[at.c] * kLog2E + d;
  const float up = fmaxf(bonus, 0.0f), down = fminf(bonus, 0.0f);
  const int64_t stride = s.channels, base = static_cast<int64_t>(at.b) * s.tokens * stride + at.c;
  const auto* k = static_cast<const T*>(io.k);
  float low = 3e38f, high = -3e38f;
  for (int t = static_cast<int>(blockIdx.y) * kTime + static_cast<int>(threadIdx.y); t < s.tokens;
       t += static_cast<int>(gridDim.y) * kTime) {
    const float x = key_of(widen(k[base + t * stride])) - static_cast<float>(t) * d;
    low = fminf(low, x + down);
    high = fmaxf(high, x + up);
  }
  if (io.a0 != nullptr) {
    const Past first = first_past<Scale>(io, at.state);
    high = fmaxf(high, first.scale.at(d) + d + log_size(first));
  }
  atomicMin(ranges + at.state, ordered(low));
  atomicMax(ranges + s.batch * s.channels + at.state, ordered(high));
}

/// Widths in natural logarithms, for the host, and anchors.
__global__ void anchors_kernel(const Wkv4Shape s, const int* ranges, float* widths,
                               float* anchors) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), n = s.batch * s.channels;
  if (i >= n) return;
  const float low = unordered(ranges[i]), high = unordered(ranges[n + i]);
  widths[i] = (high - low) * kLn2;
  anchors[i] = 0.5f * (low + high);
}

/// Where the sums ahead of a thread's tokens lie in the saved tensor, behind the anchors.
__device__ __forceinline__ int64_t sums_at(const Wkv4Shape& s, const Place& at, int t) {
  const int segments = (s.tokens + kOwn - 1) / kOwn;
  const int64_t row = static_cast<int64_t>(at.b) * segments + t / kOwn;
  return (s.batch + 2 * row) * s.channels + at.c;
}

template <class T, int kTogether>
__global__ void __launch_bounds__(kLanes* kTime)
    forward_kernel(const Wkv4Shape s, const Wkv4Forward io, const float* anchors, const Look look) {
  __shared__ Board<Sums, kTime> board;
  __shared__ float decay[kLanes];  // of no use to sums
  const int tiles = (s.tokens + kTile - 1) / kTile, row = static_cast<int>(threadIdx.y);
  const unsigned chains = chains_of(s);
  const int tile = static_cast<int>(blockIdx.x / chains);
  const Place at(s, blockIdx.x % chains);
  const float d = at.real ? decay_of(io.tau[at.c]) * kLog2E : 0.0f;
  const float u = at.real ? io.u[at.c] * kLog2E : 0.0f;
  const float anchor = at.real ? anchors[at.state] : 0.0f, bonus = pow2(u + d);
  if (row == 0) decay[threadIdx.x] = d;
  if (tile == 0 && row == 0 && at.real && io.saved != nullptr) io.saved[at.state] = anchor;
  const int64_t stride = s.channels;
  const int t0 = tile * kTile + row * kOwn;
  const int n = at.real ? max(0, min(kOwn, s.tokens - t0)) : 0;
  const int64_t base = (static_cast<int64_t>(at.b) * s.tokens + t0) * stride + at.c;
  float e[kOwn], vs[kOwn];
  load_tokens<kOwn>(n, Column<T>(io.k, base, s.channels), e, Column<T>(io.v, base, s.channels), vs);
  Sums mine, total, first;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    e[i] = i < n ? pow2(key_of(e[i]) - static_cast<float>(t0 + i) * d - anchor) : 0.0f;
    mine.v += e[i] * vs[i];
    mine.e += e[i];
  }
  if (io.a0 != nullptr && at.real) {
    const float start = pow2(to_log2(io.p0[at.state]) + d - anchor);
    first = {io.a0[at.state] * start, io.b0[at.state] * start};
  }
  const Sums ahead = scan_tile<Sums, kTime>(board, decay, row, mine, kOwn, total);
  Sums sum = look_back<kTogether, Sums, kTime>(look, s, tiles, tile, at.b, at.c, board, decay, row,
                                               total, kTile, first);
  sum.join(ahead, 0, 0);
  if (n > 0 && io.saved != nullptr) {
    float* saved = io.saved + sums_at(s, at, t0);
    saved[0] = sum.v;
    saved[stride] = sum.e;
  }
  const Column<T> y(io.y, base, s.channels);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const float own = bonus * e[i];
    if (i < n) y.set(i, (sum.v + own * vs[i]) * reciprocal(sum.e + own));
    sum.v += e[i] * vs[i];
    sum.e += e[i];
  }
  if (io.a_out != nullptr && n > 0 && t0 + n == s.tokens) {
    const int power = ilogbf(sum.e);
    const float scale = anchor + static_cast<float>(s.tokens - 1) * d + static_cast<float>(power);
    const Past last{scalbnf(sum.v, -power), scalbnf(sum.e, -power), {scale}};
    store_last(io, at.state, last, d);
  }
}

template <class T, int kTogether>
__global__ void __launch_bounds__(kLanes* kTime)
    backward_kernel(const Wkv4Shape s, const Wkv4Backward io, const Look look, float* partials) {
  __shared__ Board<Futures, kTime> board;
  __shared__ float decay[kLanes], fold[2][kTime][kLanes];
  const int tiles = (s.tokens + kTile - 1) / kTile;
  const int row = static_cast<int>(threadIdx.y), order = kTime - 1 - row;
  const unsigned chains = chains_of(s);
  const int step = static_cast<int>(blockIdx.x / chains);
  const Place at(s, blockIdx.x % chains);
  const float d = at.real ? decay_of(io.tau[at.c]) * kLog2E : 0.0f;
  const float u = at.real ? io.u[at.c] * kLog2E : 0.0f;
  const float anchor = at.real ? io.saved[at.state] : 0.0f, bonus = pow2(u + d);
  if (row == 0) decay[threadIdx.x] = d;
  const int64_t stride = s.channels;
  const int t0 = (tiles - 1 - step) * kTile + row * kOwn;
  const int n = at.real ? max(0, min(kOwn, s.tokens - t0)) : 0;
  const int64_t base = (static_cast<int64_t>(at.b) * s.tokens + t0) * stride + at.c;
  float e[kOwn], vs[kOwn], ys[kOwn], hs[kOwn];
  load_tokens<kOwn>(n, Column<T>(io.k, base, s.channels), e, Column<T>(io.v, base, s.channels), vs,
                    Column<T>(io.dy, base, s.channels), hs);
  Sums sum;
  if (n > 0) {
    const float* saved = io.saved + sums_at(s, at, t0);
    sum = {saved[0], saved[stride]};
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    e[i] = i < n ? pow2(key_of(e[i]) - static_cast<float>(t0 + i) * d - anchor) : 0.0f;
    const float own = bonus * e[i], inverse = i < n ? reciprocal(sum.e + own) : 0.0f;
    ys[i] = (sum.v + own * vs[i]) * inverse;
    hs[i] *= inverse;
    sum.v += e[i] * vs[i];
    sum.e += e[i];
  }
  Futures mine, total;
  if (n > 0 && t0 + n == s.tokens) {
    const Future behind = last_future<Scale>(io, at.state);
    const float start = pow2(anchor + static_cast<float>(s.tokens - 1) * d + behind.scale.at(d));
    mine = {start * behind.x, start * behind.z, 0, 0};
  }
  const Futures behind = mine;
#pragma unroll
  for (int i = kOwn - 1; i >= 0; --i)
    if (i < n) mine.push(hs[i], ys[i]);
  const Futures ahead = scan_tile<Futures, kTime>(board, decay, order, mine, kOwn, total);
  const Futures carry = look_back<kTogether, Futures, kTime>(
      look, s, tiles, step, at.b, at.c, board, decay, order, total, kTile, Futures{});
  Futures future = carry;
  future.join(ahead, static_cast<float>(order * kOwn), 0);
  if (n > 0 && t0 + n == s.tokens) future = behind;
  float sum_d = 0, sum_u = 0;
#pragma unroll
  for (int i = kOwn - 1; i >= 0; --i) {
    if (i >= n) continue;
    const float f = bonus * e[i] * hs[i], own = f * (vs[i] - ys[i]);
    put_gradient(static_cast<T*>(io.dk), base + i * stride,
                 own + e[i] * (future.r * vs[i] + future.rz), io.add, kDk);
    put_gradient(static_cast<T*>(io.dv), base + i * stride, f + e[i] * future.r, io.add, kDv);
    sum_u += own;
    sum_d += e[i] * (future.rd * vs[i] + future.rzd);
    future.push(hs[i], ys[i]);
  }
  if (t0 == 0 && at.real) {
    Futures all = carry;
    all.join(total, kTile, 0);
    const Future before{all.r, all.rz, all.rd, all.rzd, {d - anchor}};
    sum_d += state_gradient(io, at.state, d, before);
  }
  sum_channels<kTime>(fold, sum_d, sum_u, at.real,
                      partials + 2 * (static_cast<int64_t>(at.b) * tiles + step) * stride + at.c,
                      stride);
}

int tiles_of(const Wkv4Shape& s) {
  return (s.tokens + kTile - 1) / kTile;
}
int group_of(const Wkv4Shape& s) {
  return tiles_of(s) <= kFewTiles || chains_of(s) >= kBackwardChains ? 1 : kGroup;
}
/// The workspace begins with widths, ranges and anchors: 4 floats per sequence and channel.
size_t states(const Wkv4Shape& s) {
  return static_cast<size_t>(s.batch) * static_cast<size_t>(s.channels);
}
void* behind_ranges(const Wkv4Shape& s, void* workspace) {
  return static_cast<char*>(workspace) + (4 * sizeof(float) * states(s) + 255) / 256 * 256;
}

template <class T>
cudaError_t ranges(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  const auto n = static_cast<unsigned>(states(s)), blocks = (n + 255) / 256;
  auto* const widths = static_cast<float*>(io.workspace);
  auto* const found = reinterpret_cast<int*>(widths + n);
  no_ranges_kernel<<<blocks, 256, 0, stream>>>(s, found);
  const int shares = s.tokens < 8192 ? (s.tokens + 255) / 256 : 32;
  const dim3 grid(chains_of(s), static_cast<unsigned>(shares));
  ranges_kernel<T><<<grid, dim3(kLanes, kTime), 0, stream>>>(s, io, found);
  anchors_kernel<<<blocks, 256, 0, stream>>>(s, found, widths, widths + 3 * n);
  return cudaGetLastError();
}

template <class T>
cudaError_t forward(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  const int tiles = tiles_of(s), group = group_of(s);
  void* const mail = behind_ranges(s, io.workspace);
  const cudaError_t error = cudaMemsetAsync(mail, 0, look_bytes<Sums>(s, tiles, group), stream);
  if (error != cudaSuccess) return error;
  const unsigned all = chains_of(s) * static_cast<unsigned>(tiles);
  const dim3 block(kLanes, kTime);
  const float* const anchors = static_cast<const float*>(io.workspace) + 3 * states(s);
  const Look look = look_at<Sums>(mail, s, tiles, group);
  if (group == 1)
    forward_kernel<T, 1><<<all, block, 0, stream>>>(s, io, anchors, look);
  else
    forward_kernel<T, kGroup><<<all, block, 0, stream>>>(s, io, anchors, look);
  return cudaGetLastError();
}

template <class T>
cudaError_t backward(const Wkv4Shape& s, const Wkv4Backward& io, cudaStream_t stream) {
  const int tiles = tiles_of(s), group = group_of(s), rows = s.batch * tiles;
  const size_t mail = look_bytes<Futures>(s, tiles, group);
  auto* partials = reinterpret_cast<float*>(static_cast<char*>(io.workspace) + mail);
  cudaError_t error = cudaMemsetAsync(io.workspace, 0, mail, stream);
  if (error != cudaSuccess) return error;
  const unsigned all = chains_of(s) * static_cast<unsigned>(tiles);
  const dim3 block(kLanes, kTime);
  const Look look = look_at<Futures>(io.workspace, s, tiles, group);
  if (group == 1)
    backward_kernel<T, 1><<<all, block, 0, stream>>>(s, io, look, partials);
  else
    backward_kernel<T, kGroup><<<all, block, 0, stream>>>(s, io, look, partials);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return param_gradients(partials, rows, s.channels, io,
                         partials + 2 * static_cast<int64_t>(rows) * s.channels, stream);
}

}  // namespace

size_t wkv4_naive_saved_bytes(const Wkv4Shape& s) {
  const size_t segments = static_cast<size_t>((s.tokens + kOwn - 1) / kOwn);
  return sizeof(float) * states(s) * (1 + 2 * segments);
}

size_t wkv4_naive_workspace_bytes(const Wkv4Shape& s) {
  const int tiles = tiles_of(s), group = group_of(s);
  const size_t forward = 4 * sizeof(float) * states(s) + 256 + look_bytes<Sums>(s, tiles, group);
  const size_t rows = static_cast<size_t>(s.batch) * static_cast<size_t>(tiles);
  const size_t backward =
      look_bytes<Futures>(s, tiles, group) +
      2 * sizeof(float) * (rows + kParamScratchRows) * static_cast<size_t>(s.channels);
  return forward > backward ? forward : backward;
}

cudaError_t wkv4_naive_widths(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  return s.f32 ? ranges<float>(s, io, stream) : ranges<__nv_bfloat16>(s, io, stream);
}

cudaError_t wkv4_naive_forward(const Wkv4Shape& s, const Wkv4Forward& io, cudaStream_t stream) {
  return s.f32 ? forward<float>(s, io, stream) : forward<__nv_bfloat16>(s, io, stream);
}

cudaError_t wkv4_naive_backward(const Wkv4Shape& s, const Wkv4Backward& io, cudaStream_t stream) {
  return s.f32 ? backward<float>(s, io, stream) : backward<__nv_bfloat16>(s, io, stream);
}

}  // namespace rwkv::cuda
