// Row gather and its transpose, without atomics.
//
// Backward: (token, position) pairs are sorted by token, stably, so that the rows of one token lie
// next to each other in (b, t) order. A block takes a piece of 32 sorted rows (and up to 1024
// channels) and adds runs of equal tokens in registers. Runs inside one piece are written to their
// row of the gradient directly; runs over several pieces leave partial rows, which a second kernel
// adds in order. Limited by the zero fill of the gradient (V C floats) and one pass over dy.

#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/common/launch.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPiece = static_cast<int>(kEmbeddingPiece);

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const int32_t* tokens, const T* weight, T* y, int64_t rows, int64_t vocab,
                  int64_t c) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= rows * c) return;
  const int64_t row = i / c, token = tokens[row];
  float x[N];
  if (token >= 0 && token < vocab) {
    load<N>(weight + token * c + i % c, x);
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) x[e] = __int_as_float(0x7fffffff);  // NaN: the id is not ours
  }
  store<N>(y + i, x);
}

/// Ids out of range become `vocab`, which sorts last and is left out.
__global__ void keys_kernel(const int32_t* tokens, uint32_t* keys, int32_t* positions, int rows,
                            int vocab) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= rows) return;
  const int32_t token = tokens[i];
  keys[i] = static_cast<uint32_t>(token < 0 || token >= vocab ? vocab : token);
  positions[i] = i;
}

struct Sorted {
  const uint32_t* keys;
  const int32_t* positions;
  int64_t rows, c;
  uint32_t vocab;
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    pieces_kernel(Sorted s, const T* __restrict__ dy, Grad<float> dweight, float* partials) {
  const int64_t channel = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * N;
  if (channel >= s.c) return;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPiece;
  const int64_t end = min(begin + kPiece, s.rows);
  constexpr int kAhead = 8;  // loads in flight
  float sum[N];
  int64_t run = begin;  // first row of the current run within the piece
  for (int64_t i0 = begin; i0 < end; i0 += kAhead) {
    float x[kAhead][N];
    uint32_t key[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (i0 + j < end) {
        key[j] = s.keys[i0 + j];
        load<N>(dy + static_cast<int64_t>(s.positions[i0 + j]) * s.c + channel, x[j]);
      }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = i0 + j;
      if (i >= end) break;
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] = i == run ? x[j][e] : sum[e] + x[j][e];
      const bool more = i + 1 < s.rows && s.keys[i + 1] == key[j];
      if (more && i + 1 < end) continue;
      // The run ends here, or the piece does.
      const bool from_before = run == begin && begin > 0 && s.keys[begin - 1] == key[j];
      if (from_before || more) {
        const int64_t slot = 2 * static_cast<int64_t>(blockIdx.x) + (from_before ? 0 : 1);
        store<N>(partials + slot * s.c + channel, sum);
      } else if (key[j] < s.vocab) {
        emit<N>(dweight, static_cast<int64_t>(key[j]) * s.c + channel, sum);
      }
      run = i + 1;
    }
  }
}

/// Adds up the run that starts in this block's piece and goes on in the next.
template <int N>
__global__ void __launch_bounds__(kThreads)
    joins_kernel(Sorted s, Grad<float> dweight, const float* partials) {
  const int64_t channel = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * N;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPiece, end = begin + kPiece;
  if (channel >= s.c || end >= s.rows) return;
  const uint32_t key = s.keys[end - 1];
  if (key >= s.vocab || s.keys[end] != key) return;
  if (begin > 0 && s.keys[begin - 1] == key) return;  // starts in an earlier piece
  float sum[N], x[N];
  load<N>(partials + (2 * static_cast<int64_t>(blockIdx.x) + 1) * s.c + channel, sum);
  for (int64_t piece = blockIdx.x + 1;; ++piece) {
    load<N>(partials + 2 * piece * s.c + channel, x);
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] += x[e];
    const int64_t next = (piece + 1) * kPiece;
    if (next >= s.rows || s.keys[next] != key) break;
  }
  emit<N>(dweight, static_cast<int64_t>(key) * s.c + channel, sum);
}

}  // namespace

void embedding_forward(Context& ctx, const OpCall& call) {
  by_type("embedding", call.param[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = call.in[0].numel(), vocab = call.param[0].dim(0), c = call.param[0].dim(1);
    const bool packed = packs<T>(c, {call.param, call.out});
    const int64_t threads = rows * c / (packed ? kPack<T> : 1);
    const auto run = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(ceil_div(threads, kThreads)), kThreads, 0, stream_of(ctx)>>>(
          call.in[0].as<int32_t>(), call.param[0].as<T>(), call.out[0].as<T>(), rows, vocab, c);
    };
    packed ? run(gather_kernel<T, kPack<T>>) : run(gather_kernel<T, 1>);
    RWKV_LAUNCHED("embedding forward", stream_of(ctx));
  });
}

void embedding_backward(Context& ctx, const OpCall& call) {
  const Accum mode = call.dparam_mode[0];
  if (mode == Accum::kSkip) return;
  const TensorView& dweight = call.dparam[0];
  const int64_t rows = call.in[0].numel(), vocab = dweight.dim(0), c = dweight.dim(1);
  RWKV_CHECK(rows < INT32_MAX && vocab < INT32_MAX, ShapeError, "op embedding on CUDA: found ",
             rows, " tokens and a vocabulary of ", vocab, ", expected fewer than 2^31");
  const cudaStream_t stream = stream_of(ctx);
  std::byte* work = ctx.workspace(embedding_bytes(rows, c));
  const size_t list = align_up(static_cast<size_t>(rows) * sizeof(int32_t));
  auto* keys = reinterpret_cast<uint32_t*>(work);
  auto* positions = reinterpret_cast<int32_t*>(work + list);
  auto* sorted_keys = reinterpret_cast<uint32_t*>(work + 2 * list);
  auto* sorted_positions = reinterpret_cast<int32_t*>(work + 3 * list);
  std::byte* sort_memory = work + 4 * list;
  auto* partials = reinterpret_cast<float*>(sort_memory + embedding_sort_bytes(rows));

  keys_kernel<<<static_cast<unsigned>(ceil_div(rows, 256)), 256, 0, stream>>>(
      call.in[0].as<int32_t>(), keys, positions, static_cast<int>(rows), static_cast<int>(vocab));
  RWKV_LAUNCHED("embedding backward, keys", stream);
  int bits = 1;
  while ((vocab >> bits) != 0) ++bits;
  size_t need = 0;
  RWKV_CUDA(cub::DeviceRadixSort::SortPairs(nullptr, need, keys, sorted_keys, positions,
                                            sorted_positions, static_cast<int>(rows), 0, bits,
                                            stream));
  RWKV_ASSERT(need <= embedding_sort_bytes(rows), "sorting ", rows, " tokens takes ", need);
  RWKV_CUDA(cub::DeviceRadixSort::SortPairs(sort_memory, need, keys, sorted_keys, positions,
                                            sorted_positions, static_cast<int>(rows), 0, bits,
                                            stream));
  RWKV_LAUNCHED("embedding backward, sort", stream);
  if (mode == Accum::kWrite) RWKV_CUDA(cudaMemsetAsync(dweight.data, 0, dweight.bytes(), stream));
  const Grad<float> grad{dweight.f32(), mode};
  const Sorted sorted{sorted_keys, sorted_positions, rows, c, static_cast<uint32_t>(vocab)};
  by_type("embedding", call.dout[0], [&](auto zero) {
    using T = decltype(zero);
    const bool packed = packs<T>(c, {call.dout, call.dparam});
    const int width = kThreads * (packed ? kPack<T> : 1);
    const dim3 grid(static_cast<unsigned>(ceil_div(rows, kPiece)),
                    static_cast<unsigned>(ceil_div(c, width)));
    if (packed) {
      pieces_kernel<T, kPack<T>>
          <<<grid, kThreads, 0, stream>>>(sorted, call.dout[0].as<T>(), grad, partials);
      joins_kernel<kPack<T>><<<grid, kThreads, 0, stream>>>(sorted, grad, partials);
    } else {
      pieces_kernel<T, 1>
          <<<grid, kThreads, 0, stream>>>(sorted, call.dout[0].as<T>(), grad, partials);
      joins_kernel<1><<<grid, kThreads, 0, stream>>>(sorted, grad, partials);
    }
    RWKV_LAUNCHED("embedding backward", stream);
  });
}

}  // namespace rwkv::cuda
