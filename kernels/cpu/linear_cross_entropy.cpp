// Head, softmax and loss. Tokens are handled in chunks (attrs.chunk_tokens, or
// kLinearCrossEntropyChunk when the logits are kept): one product for the logits, a row-parallel
// softmax, and in the backward two products with the gradient of the logits, which overwrites the
// logits. Both forms take the same steps on the same chunks, so with chunk_tokens ==
// kLinearCrossEntropyChunk they are bit-equal.

#include <cmath>
#include <limits>

#include "kernels/core/gemm.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/rows.h"
#include "kernels/ops/linear_cross_entropy.h"

namespace rwkv::cpu {
namespace {

struct Head {
  explicit Head(const OpCall& call)
      : rows(call.in[0].rows()),
        width(call.in[0].last()),
        vocab(call.param[0].dim(0)),
        kept(call.attr<LinearCrossEntropyAttrs>().chunk_tokens == 0),
        chunk(kept ? kLinearCrossEntropyChunk : call.attr<LinearCrossEntropyAttrs>().chunk_tokens),
        x(call.in[0].f32()),
        weight(call.param[0]),
        targets(call.in[1].as<int32_t>()) {}

  int64_t rows, width, vocab;
  bool kept;
  int64_t chunk;
  const float* x;
  TensorView weight;
  const int32_t* targets;

  /// Where the logits of the tokens from `row` on live.
  float* logits(Context& ctx, const OpCall& call, int64_t row) const {
    if (kept) return call.saved[1].f32() + row * vocab;
    const int64_t tokens = std::min(chunk, rows);
    return reinterpret_cast<float*>(
        ctx.workspace(static_cast<size_t>(tokens * vocab) * sizeof(float)));
  }
  void compute_logits(Context& ctx, int64_t row, int64_t tokens, float* logits) const {
    gemm_nt(ctx, tokens, x + row * width, weight, logits, Accum::kWrite);
  }
};

/// Largest logit of a row; NaN logits are passed over here and show in the sum of exponentials.
float largest(const float* __restrict logits, int64_t n) {
  constexpr int kLanes = 16;
  float best[kLanes];
  for (float& b : best) b = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) best[l] = logits[i + l] > best[l] ? logits[i + l] : best[l];
  for (; i < n; ++i) best[0] = logits[i] > best[0] ? logits[i] : best[0];
  return *std::max_element(best, best + kLanes);
}

/// sum of exp(logit - max): f32 in blocks, double across blocks.
double sum_exp(const float* __restrict logits, int64_t n, float max) {
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += 4 * kBlock)
    sum += static_cast<double>(lane_sum(std::min(4 * kBlock, n - begin),
                                        [&](int64_t i) { return exp_f(logits[begin + i] - max); }));
  return sum;
}

}  // namespace

void linear_cross_entropy_forward(Context& ctx, const OpCall& call) {
  const Head head(call);
  float* token_loss = call.out[1].f32();
  float* sums = call.saved[0].f32();
  for (int64_t r = 0; r < head.rows; ++r)
    RWKV_CHECK(head.targets[r] >= 0 && head.targets[r] < head.vocab, ShapeError,
               "op linear_cross_entropy, targets: found id ", head.targets[r], " at flat position ",
               r, ", expected ids in [0, ", head.vocab,
               "); do data and model use the same tokenizer?");
  for (int64_t row = 0; row < head.rows; row += head.chunk) {
    const int64_t tokens = std::min(head.chunk, head.rows - row);
    float* logits = head.logits(ctx, call, row);
    head.compute_logits(ctx, row, tokens, logits);
    parallel_for(tokens, 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const float* l = logits + t * head.vocab;
        const float max = largest(l, head.vocab);
        const double sum = sum_exp(l, head.vocab, max);
        sums[row + t] = static_cast<float>(sum);
        token_loss[row + t] =
            static_cast<float>(std::log(sum) + (static_cast<double>(max) -
                                                static_cast<double>(l[head.targets[row + t]])));
      }
    });
  }
  double total = 0;
  for (int64_t r = 0; r < head.rows; ++r) total += static_cast<double>(token_loss[r]);
  call.out[0].f32()[0] = static_cast<float>(total / static_cast<double>(head.rows));
}

void linear_cross_entropy_backward(Context& ctx, const OpCall& call) {
  const Head head(call);
  const bool l2wrap = call.attr<LinearCrossEntropyAttrs>().l2wrap;
  const float* sums = call.saved[0].f32();
  const float scale = call.dout[0].f32()[0] / static_cast<float>(head.rows);
  Accum weight_mode = call.dparam_mode[0];
  for (int64_t row = 0; row < head.rows; row += head.chunk) {
    const int64_t tokens = std::min(head.chunk, head.rows - row);
    float* logits = head.logits(ctx, call, row);
    if (!head.kept) head.compute_logits(ctx, row, tokens, logits);
    parallel_for(tokens, 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        float* __restrict l = logits + t * head.vocab;
        const float max = largest(l, head.vocab);
        int64_t argmax = 0;
        if (l2wrap)
          while (argmax < head.vocab - 1 && l[argmax] != max) ++argmax;
        const float factor = scale / sums[row + t];
        for (int64_t i = 0; i < head.vocab; ++i) l[i] = exp_f(l[i] - max) * factor;
        l[head.targets[row + t]] -= scale;
        if (l2wrap) l[argmax] += scale * 1e-4f * max;
      }
    });
    gemm_nn(ctx, tokens, head.width, head.vocab, logits, head.weight.f32(),
            at(call.din[0], row * head.width), call.din_mode[0]);
    gemm_tn(ctx, head.vocab, head.width, tokens, logits, head.x + row * head.width,
            at(call.dparam[0], 0), weight_mode);
    if (weight_mode == Accum::kWrite) weight_mode = Accum::kAdd;
  }
}

}  // namespace rwkv::cpu
