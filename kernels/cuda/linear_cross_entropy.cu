// Head, softmax and loss. Logits are in the activations' type, in rows of logits_stride(V).
//
// One kernel handles a row of logits per block: it reads the row once into shared memory (V
// elements: 100 KB for 50304 in bf16; rows that do not fit are read again from memory), finds the
// largest logit and the sum of exponentials, and in the same visit overwrites the row with its
// gradient for an upstream gradient of 1. So where logits are kept, the forward leaves their
// gradient in place of them, and the backward is two products scaled by the upstream gradient (on
// the device, as the products' alpha). With chunk_tokens > 0 the forward leaves nothing and the
// backward computes logits and gradient again, a chunk at a time, in the workspace.
// Limited by bandwidth: one read and one write of the logits, besides the products.

#include <cfloat>

#include "kernels/core/gemm.h"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/math.cuh"
#include "kernels/ops/linear_cross_entropy.h"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr size_t kMostShared = size_t{220} << 10;  ///< of 227 KB a block may have on Hopper
constexpr float kL2Wrap = 1e-4f;

struct RowsCall {
  int64_t vocab, stride;
  const int32_t* targets;
  float *token_loss, *sum_exp;  ///< null: not wanted
  float inv_tokens;             ///< of the mean in the gradient; 0: the logits stay
  bool l2wrap, shared;
};

__device__ float block_max(float x, float* smem) {
  x = lane_max(x);
  if (threadIdx.x % 32 == 0) smem[threadIdx.x / 32] = x;
  __syncthreads();
  x = lane_max(smem[threadIdx.x % kWarps]);
  __syncthreads();
  return x;
}
__device__ double block_sum(double x, double* smem) {
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  if (threadIdx.x % 32 == 0) smem[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int w = 0; w < kWarps; ++w) x += smem[w];
  __syncthreads();
  return x;
}

/// 2^x, of bf16 operands by the hardware's approximation (2 ulp; subnormals become 0).
template <class T>
__device__ __forceinline__ float exp2_as(float x) {
  if constexpr (sizeof(T) == 4) return exp2f(x);
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// e^(x - most) * factor; offset = most * log2(e) - log2(factor). In f32 the difference comes
/// first: it is exact near the maximum. In bf16 one multiply-add does, whose error is far below the
/// rounding of the logit.
template <class T>
__device__ __forceinline__ float exp_of(float x, float most, float offset, float factor) {
  constexpr float kLog2e = 1.4426950408889634f;
  if constexpr (sizeof(T) == 4) return expf(x - most) * factor;
  return exp2_as<T>(fmaf(x, kLog2e, -offset));
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) rows_kernel(T* logits, RowsCall c) {
  extern __shared__ uint4 row_memory[];
  __shared__ float fold[kWarps];
  __shared__ double fold_sum[kWarps];
  __shared__ int argmax;
  constexpr int N = kPack<T>;
  constexpr int kStep = kThreads * N;
  T* row = logits + static_cast<int64_t>(blockIdx.x) * c.stride;
  T* held = c.shared ? reinterpret_cast<T*>(row_memory) : row;
  const int vocab = static_cast<int>(c.vocab), whole = vocab / N * N;
  const int first = static_cast<int>(threadIdx.x) * N;
  // The pack that the end of the vocabulary cuts, if any, belongs to one thread.
  const int tail = whole < vocab && whole % kStep == first ? vocab - whole : 0;
  if (threadIdx.x == 0) argmax = vocab - 1;
  const int target = c.targets[blockIdx.x];
  const bool known = target >= 0 && target < vocab;
  const float target_logit = known ? to_float(row[target]) : __int_as_float(0x7fffffff);

  // fmaxf passes over NaN; it shows in the sum of exponentials.
  float mine = -INFINITY;
#pragma unroll 8
  for (int i = first; i < whole; i += kStep) {
    Raw<T, N> raw;
    raw.fetch(row + i);
    if (c.shared) row_memory[i / N] = raw.word;
    float x[N];
    raw.get(x);
#pragma unroll
    for (int e = 0; e < N; ++e) mine = fmaxf(mine, x[e]);
  }
  for (int e = 0; e < tail; ++e) {
    if (c.shared) held[whole + e] = row[whole + e];
    mine = fmaxf(mine, to_float(row[whole + e]));
  }
  const float most = block_max(mine, fold);

  constexpr float kLog2e = 1.4426950408889634f;
  const float most_log2 = most * kLog2e;
  float part[2] = {};
#pragma unroll 4
  for (int i = first; i < whole; i += kStep) {
    float x[N];
    load<N>(held + i, x);
#pragma unroll
    for (int e = 0; e < N; ++e) part[e % 2] += exp_of<T>(x[e], most, most_log2, 1.0f);
  }
  for (int e = 0; e < tail; ++e)
    part[0] += exp_of<T>(to_float(held[whole + e]), most, most_log2, 1.0f);
  if (c.l2wrap && mine == most) {  // few threads: look for the lowest index
    int at = vocab;
    for (int i = first; i < whole && at == vocab; i += kStep)
      for (int e = N - 1; e >= 0; --e)
        if (to_float(held[i + e]) == most) at = i + e;
    for (int e = tail - 1; e >= 0 && at >= whole; --e)
      if (to_float(held[whole + e]) == most) at = whole + e;
    if (at < vocab) atomicMin(&argmax, at);  // an integer minimum: the order does not matter
  }
  const double sum =
      block_sum(static_cast<double>(part[0]) + static_cast<double>(part[1]), fold_sum);
  if (threadIdx.x == 0) {
    if (c.sum_exp != nullptr) c.sum_exp[blockIdx.x] = static_cast<float>(sum);
    if (c.token_loss != nullptr)
      c.token_loss[blockIdx.x] = static_cast<float>(
          log(sum) + (static_cast<double>(most) - static_cast<double>(target_logit)));
  }
  if (c.inv_tokens == 0.0f) return;

  // block_sum's barriers lie between every read of the row in memory by other threads and these
  // stores. Tokens with an unknown target get no gradient.
  const float factor = known ? c.inv_tokens / static_cast<float>(sum) : 0.0f;
  const float shifted = most_log2 - log2f(factor);  // infinite for a factor of 0: all vanish
  const int top = c.l2wrap && known ? argmax : -1;
  const float wrap = c.inv_tokens * kL2Wrap * most;
  const auto corrected = [&](float p, int i) {
    if (i == target && known) p -= c.inv_tokens;
    return i == top ? p + wrap : p;
  };
#pragma unroll 4
  for (int i = first; i < whole; i += kStep) {
    float x[N];
    load<N>(held + i, x);
#pragma unroll
    for (int e = 0; e < N; ++e) x[e] = exp_of<T>(x[e], most, shifted, factor);
    if (static_cast<unsigned>(target - i) < N || static_cast<unsigned>(top - i) < N) {
#pragma unroll
      for (int e = 0; e < N; ++e) x[e] = corrected(x[e], i + e);
    }
    store<N>(row + i, x);
  }
  for (int e = 0; e < tail; ++e) {
    const float p = exp_of<T>(to_float(held[whole + e]), most, shifted, factor);
    from_float(row[whole + e], corrected(p, whole + e));
  }
}

/// Mean of n values, in double, by one block.
__global__ void __launch_bounds__(kThreads) mean_kernel(const float* x, int64_t n, float* mean) {
  __shared__ double fold[kWarps];
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += static_cast<double>(x[i]);
  sum = block_sum(sum, fold);
  if (threadIdx.x == 0) *mean = static_cast<float>(sum / static_cast<double>(n));
}

struct Head {
  explicit Head(const OpCall& call)
      : x(call.in[0]),
        weight(call.param[0]),
        rows(x.rows()),
        width(x.last()),
        vocab(weight.dim(0)),
        stride(logits_stride(vocab)),
        // An odd number of words, as the Pile's 50277, keeps cuBLASLt from its wide kernels: its
        // products take five times as long. The words beyond the last multiple of 64 are products
        // of their own.
        whole(vocab % 8 == 0 || vocab < kWords ? vocab : vocab / kWords * kWords),
        kept(call.attr<LinearCrossEntropyAttrs>().chunk_tokens == 0),
        chunk(kept ? rows : std::min(rows, call.attr<LinearCrossEntropyAttrs>().chunk_tokens)) {}

  TensorView x, weight;
  static constexpr int64_t kWords = 64;
  int64_t rows, width, vocab, stride, whole;
  bool kept;
  int64_t chunk;

  DType type() const { return x.spec.dtype; }
  /// `data` and `elements` more of them.
  std::byte* after(void* data, int64_t elements) const {
    return static_cast<std::byte*>(data) + elements * static_cast<int64_t>(dtype_bytes(type()));
  }
  std::byte* x_at(int64_t row) const { return after(x.data, row * width); }
  void* logits(Context& ctx, const OpCall& call) const {
    if (kept) return call.saved[1].data;
    return ctx.workspace(static_cast<size_t>(chunk * stride) * dtype_bytes(type()));
  }
  /// Calls part(first, words) for both parts of the vocabulary, the small one first, if any.
  template <class Part>
  void parts(const Part& part) const {
    if (whole < vocab) part(whole, vocab - whole);
    part(int64_t{0}, whole);
  }
  void compute_logits(Context& ctx, int64_t row, int64_t tokens, void* logits) const {
    parts([&](int64_t first, int64_t words) {
      gemm(ctx, {.m = tokens,
                 .n = words,
                 .k = width,
                 .a = x_at(row),
                 .b = after(weight.data, first * width),
                 .c = after(logits, first),
                 .lda = width,
                 .ldb = width,
                 .ldc = stride,
                 .trans_b = true,
                 .dtype = type(),
                 .out_dtype = type()});
    });
  }
  void softmax(Context& ctx, const OpCall& call, int64_t row, int64_t tokens, void* logits,
               bool forward, bool gradient) const {
    RowsCall rows_call{.vocab = vocab,
                       .stride = stride,
                       .targets = call.in[1].as<int32_t>() + row,
                       .token_loss = forward ? call.out[1].f32() + row : nullptr,
                       .sum_exp = forward ? call.saved[0].f32() + row : nullptr,
                       .inv_tokens = gradient ? 1.0f / static_cast<float>(rows) : 0.0f,
                       .l2wrap = call.attr<LinearCrossEntropyAttrs>().l2wrap,
                       .shared = false};
    const size_t bytes = static_cast<size_t>(stride) * dtype_bytes(type());
    rows_call.shared = bytes <= kMostShared;
    by_type("linear_cross_entropy", x, [&](auto zero) {
      using T = decltype(zero);
      const size_t shared = rows_call.shared ? bytes : 0;
      RWKV_CUDA(cudaFuncSetAttribute(rows_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(kMostShared)));
      rows_kernel<T><<<static_cast<unsigned>(tokens), kThreads, shared, stream_of(ctx)>>>(
          static_cast<T*>(logits), rows_call);
      RWKV_LAUNCHED("linear_cross_entropy rows", stream_of(ctx));
    });
  }
};

}  // namespace

void linear_cross_entropy_forward(Context& ctx, const OpCall& call) {
  const Head head(call);
  RWKV_CHECK(head.vocab < INT32_MAX / 2, ShapeError, "op linear_cross_entropy on CUDA: found ",
             head.vocab, " words, expected fewer than 2^30");
  void* logits = head.logits(ctx, call);
  for (int64_t row = 0; row < head.rows; row += head.chunk) {
    const int64_t tokens = std::min(head.chunk, head.rows - row);
    head.compute_logits(ctx, row, tokens, logits);
    head.softmax(ctx, call, row, tokens, logits, true, head.kept);
  }
  mean_kernel<<<1, kThreads, 0, stream_of(ctx)>>>(call.out[1].f32(), head.rows, call.out[0].f32());
  RWKV_LAUNCHED("linear_cross_entropy mean", stream_of(ctx));
}

void linear_cross_entropy_backward(Context& ctx, const OpCall& call) {
  const Head head(call);
  Accum weight_mode = call.dparam_mode[0];
  if (call.din_mode[0] == Accum::kSkip && weight_mode == Accum::kSkip) return;
  void* logits = head.logits(ctx, call);
  const DType type = head.type();
  for (int64_t row = 0; row < head.rows; row += head.chunk) {
    const int64_t tokens = std::min(head.chunk, head.rows - row);
    if (!head.kept) {
      head.compute_logits(ctx, row, tokens, logits);
      head.softmax(ctx, call, row, tokens, logits, false, true);
    }
    Accum x_mode = call.din_mode[0];
    if (x_mode != Accum::kSkip)
      head.parts([&](int64_t first, int64_t words) {
        gemm(ctx, {.m = tokens,
                   .n = head.width,
                   .k = words,
                   .a = head.after(logits, first),
                   .b = head.after(head.weight.data, first * head.width),
                   .c = head.after(call.din[0].data, row * head.width),
                   .lda = head.stride,
                   .ldb = head.width,
                   .ldc = head.width,
                   .mode = x_mode,
                   .dtype = type,
                   .out_dtype = type,
                   .alpha = call.dout[0].f32()});
        x_mode = Accum::kAdd;
      });
    if (weight_mode == Accum::kSkip) continue;
    head.parts([&](int64_t first, int64_t words) {
      gemm(ctx, {.m = words,
                 .n = head.width,
                 .k = tokens,
                 .a = head.after(logits, first),
                 .b = head.x_at(row),
                 .c = call.dparam[0].f32() + first * head.width,
                 .lda = head.stride,
                 .ldb = head.width,
                 .ldc = head.width,
                 .trans_a = true,
                 .mode = weight_mode,
                 .dtype = type,
                 .out_dtype = DType::kF32,
                 .alpha = call.dout[0].f32()});
    });
    weight_mode = Accum::kAdd;
  }
}

}  // namespace rwkv::cuda
