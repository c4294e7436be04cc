// A prompt in the parallel form: the order of products and kernels.

#include "kernels/decode/prefill.h"

#include <algorithm>

#include "kernels/core/arena.h"
#include "kernels/core/cuda/cuda_state.h"
#include "kernels/core/error.h"
#include "kernels/core/gemm.h"
#include "kernels/cuda/decode/batch_kernels.h"
#include "kernels/cuda/decode/prefill_kernels.h"
#include "kernels/wkv/cuda/wkv7_cuda.h"

namespace rwkv::decode {
namespace {

using namespace cuda::decode;  // NOLINT: the launchers

constexpr int kInputs = 6;  ///< r, k, v, w, a, g
/// Up to this many rows x width, r, k and v are multiplied side by side: one alone would not fill
/// the GPU.
constexpr int64_t kSideBySide = int64_t{1} << 22;
/// Low-rank products of up to this many rows are our own.
constexpr int kFewRows = 128;
/// From this many results on, the squared ReLU is part of the product with the key matrix.
constexpr int64_t kFusedKey = int64_t{2048} * 3072;
/// Losses: rows whose logits exist at a time.
constexpr int kLossRows = 256;
/// Sequences are cut into segments, worked on side by side, from this length on and below this
/// many streams (kernels/wkv/auto_table.h).
constexpr int kScanTokens = 192, kScanStreams = 199;
/// So many that two blocks have work on every processor, but no more than this: they are joined
/// one after the other. Measured: docs/prefill.md.
constexpr int kMostSegments = 11;
/// In f16, v enters the recurrence times this, so that states up to 10^6 have a place in the
/// operands (kernels/wkv/cuda/wkv7_chunk.cuh). A power of two: nothing is rounded.
constexpr float kHalfValueScale = 1.0f / 16;

cuda::Wkv7Shape recurrence(const Layout& l, int batch, int tokens) {
  cuda::Wkv7Shape s{batch, tokens, l.shape.heads(), kHeadSize, 1};
  const int streams = batch * s.heads;
  if (tokens >= kScanTokens && streams < kScanStreams)
    s.segments = std::max(
        2, std::min({2 * cuda::kWkv7PlannedProcessors / streams, tokens / 128, kMostSegments}));
  return s;
}

/// Places of the activations, bytes.
struct Work {
  Work(const Layout& l, int batch, int tokens, bool losses) {
    const auto sequences = static_cast<size_t>(batch);
    const size_t rows = sequences * static_cast<size_t>(tokens);
    const auto d = static_cast<size_t>(l.shape.width), e = static_cast<size_t>(l.element),
               layers = static_cast<size_t>(l.shape.layers),
               heads = static_cast<size_t>(l.shape.heads());
    const auto place = [&](size_t n) {
      const size_t at = bytes;
      bytes += align_up(n);
      return at;
    };
    for (size_t& r : residual) r = place(rows * d * sizeof(float));
    mixed = place(kInputs * rows * d * e);
    products = place(3 * rows * d * e);
    middle = place(rows * static_cast<size_t>(l.in_rows() - l.section[3]) * e);
    // The channel mix comes when the low-rank products are no longer needed.
    low = hidden = place(rows * std::max(kLowRanks * d, static_cast<size_t>(l.shape.ffn)) * e);
    v_first = place(rows * d * e);
    added = place(std::max(rows, 2 * sequences) * d * e);
    bonus = place(rows * heads * sizeof(float));
    states = place(layers * sequences * heads * kHeadSize * kHeadSize * sizeof(float));
    last = place(sequences * layers * 2 * d * e);
    scan = place(cuda::wkv7_chunk_workspace_bytes(recurrence(l, batch, tokens)));
    if (losses) logits = place(kLossRows * static_cast<size_t>(l.shape.vocab) * sizeof(float));
  }
  size_t bytes = 0, residual[2], mixed, products, middle, low, hidden, v_first, added, bonus,
         states, last, scan, logits = 0;
};

cudaStream_t stream_of(const Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream());
}

/// One call, with what its parts share.
class Prefill {
 public:
  Prefill(Context& ctx, const Layout& l, const PlainLayout& plain, DType type, const PrefillCall& c,
          BatchEvents& events)
      : ctx_(ctx),
        l_(l),
        plain_(plain),
        type_(type),
        c_(c),
        events_(events),
        at_(l, c.batch, c.tokens, c.losses != nullptr),
        prompts_{c.batch, c.tokens, c.slots, c.counts},
        d_(static_cast<size_t>(l.shape.width)),
        e_(static_cast<size_t>(l.element)),
        matrix_(static_cast<size_t>(prompts_.rows()) * d_ * e_),
        value_scale_(type == DType::kF16 ? kHalfValueScale : 1) {
    mix_.prompts = prompts_;
    mix_.width = l.shape.width;
    mix_.shift_stride = mix_.last_stride = static_cast<int64_t>(l.shape.layers) * 2 * mix_.width;
    states_ = {.prompts = prompts_,
               .layers = l.shape.layers,
               .heads = l.shape.heads(),
               .half_state = c.half_state,
               .slot_scale = c.half_state ? c.state_scale : 1,
               .scale = value_scale_,
               .wkv = c.wkv,
               .wkv_stride = static_cast<int64_t>(l.shape.layers) * l.shape.heads() *
                             (kHeadSize * kHeadSize) * (c.half_state ? 2 : 4),
               .states = reinterpret_cast<float*>(c.work + at_.states),
               .shift = c.shift,
               .shift_stride = mix_.shift_stride,
               .last = c.work + at_.last,
               .exponents = c.exponents,
               .elapsed = c.elapsed};
  }

  void run() {
    launch_prompt_states_load(states_, stream_of(ctx_));
    mark("states");
    for (int layer = 0; layer < l_.shape.layers; ++layer) {
      // Of the last layer's output only the last row is wanted, unless for losses.
      const bool ends = layer + 1 == l_.shape.layers && c_.losses == nullptr;
      time_mix(layer, ends);
      channel_mix(layer, ends);
    }
    launch_prompt_states_store(type_, states_, stream_of(ctx_));
    mark("states");
    head();
  }

 private:
  const std::byte* weights(int layer) const {
    return c_.weights + static_cast<size_t>(layer) * l_.layer_bytes;
  }
  const std::byte* plain(int layer) const {
    return c_.plain + static_cast<size_t>(layer) * plain_.layer_bytes;
  }
  const float* param(int layer, int which) const {
    return c_.params + (static_cast<size_t>(layer) * kParams + static_cast<size_t>(which)) * d_;
  }
  std::byte* work(size_t at) const { return c_.work + at; }
  void mark(const char* stage) const {
    if (c_.mark != nullptr) (*c_.mark)(stage);
  }

  /// y (rows, n) = x (rows, k) W^T; rows of y `ldc` apart.
  void product(Context& lane, const void* x, const std::byte* w, void* y, int rows, int n, int k,
               DType out, int lda = 0, int ldc = 0) const {
    gemm(lane, {.m = rows,
                .n = n,
                .k = k,
                .a = x,
                .b = w,
                .c = y,
                .lda = lda > 0 ? lda : k,
                .ldb = k,
                .ldc = ldc > 0 ? ldc : n,
                .trans_b = true,
                .dtype = type_,
                .out_dtype = out});
  }

  /// Norm `which` of a layer, then the mixes from `first_mix` on. Residuals change places.
  void mix(int layer, Param which, Param first_mix, int outputs, bool ends) {
    const bool begins = layer == 0 && which == kLn1Weight;
    const size_t kind = which == kLn1Weight ? 0 : 1;
    const size_t shift = (static_cast<size_t>(layer) * 2 + kind) * d_ * e_;
    mix_.residual = reinterpret_cast<float*>(work(at_.residual[residual_]));
    residual_ ^= 1;
    mix_.sum = reinterpret_cast<float*>(work(at_.residual[residual_]));
    mix_.embedding = begins ? c_.weights + l_.embedding_at : nullptr;
    mix_.ids = c_.ids;
    mix_.add = begins ? nullptr : work(at_.added);
    mix_.weight = param(layer, which);
    mix_.bias = param(layer, which + 1);
    mix_.mix = param(layer, first_mix);
    mix_.outputs = outputs;
    mix_.shift = c_.shift + shift;
    mix_.last = work(at_.last) + shift;
    mix_.out = work(at_.mixed);
    mix_.ends = ends;
    launch_prompt_mix(type_, mix_, stream_of(ctx_));
    mark("mix");
  }

  /// The first product of low-rank map i.
  PromptDown down(int layer, int i) const {
    constexpr size_t kInputOf[kLowRanks] = {3, 4, 2, 5};
    constexpr PromptAct kAct[kLowRanks] = {PromptAct::kTanh, PromptAct::kNone, PromptAct::kNone,
                                           PromptAct::kSigmoid};
    return {.x = work(at_.mixed) + kInputOf[i] * matrix_,
            .w = weights(layer) + l_.in_at + static_cast<size_t>(l_.section[3 + i]) * d_ * e_,
            .out = middle(i),
            .rank = l_.shape.rank[i],
            .act = kAct[i]};
  }
  std::byte* middle(int i) const {
    return work(at_.middle) + static_cast<size_t>(l_.section[3 + i] - l_.section[3]) * e_;
  }
  int middle_ld() const { return l_.in_rows() - l_.section[3]; }
  /// Small ones in one launch of our own.
  void downs(Context& lane, bool own, std::initializer_list<PromptDown> all) const {
    const int rows = prompts_.rows(), width = l_.shape.width;
    if (own) {
      launch_prompt_downs(type_, rows, width, middle_ld(), all, stream_of(lane));
      return;
    }
    for (const PromptDown& p : all) {
      product(lane, p.x, static_cast<const std::byte*>(p.w), p.out, rows, p.rank, width, type_,
              width, middle_ld());
      if (p.act != PromptAct::kNone)
        launch_prompt_activation(type_, p, rows, middle_ld(), stream_of(lane));
    }
  }

  /// Matrix n of `at`.
  std::byte* matrix(size_t at, size_t n) const { return work(at) + n * matrix_; }
  float* bonus() const { return reinterpret_cast<float*>(work(at_.bonus)); }

  void heads(int layer) const {
    const std::byte* const up = plain(layer);
    launch_prompt_heads(
        type_,
        {.prompts = prompts_,
         .heads = l_.shape.heads(),
         .layer = layer,
         .r = matrix(at_.products, 0),
         .k = matrix(at_.products, 1),
         .v = matrix(at_.products, 2),
         .middle = {middle(0), middle(1), middle(2)},
         .up = {up + plain_.low_at[0], up + plain_.low_at[1], up + plain_.low_at[2]},
         .middle_ld = middle_ld(),
         .rank = {l_.shape.rank[0], l_.shape.rank[1], l_.shape.rank[2]},
         .w = matrix(at_.low, 0),
         .a = matrix(at_.low, 1),
         .b = matrix(at_.low, 2),
         .v_first = matrix(at_.v_first, 0),
         .bonus = bonus(),
         .params = param(layer, 0),
         .value_scale = value_scale_},
        stream_of(ctx_));
  }

  /// The recurrence, from and to the layer's states; y goes where the first mix was.
  void walk(int layer) const {
    const cuda::Wkv7Shape shape = recurrence(l_, c_.batch, c_.tokens);
    float* const state = states_.states + static_cast<size_t>(layer) *
                                              static_cast<size_t>(c_.batch * l_.shape.heads()) *
                                              (kHeadSize * kHeadSize);
    const cuda::Wkv7Forward io{.r = matrix(at_.products, 0),
                               .w = matrix(at_.low, 0),
                               .k = matrix(at_.products, 1),
                               .v = matrix(at_.products, 2),
                               .a = matrix(at_.low, 1),
                               .b = matrix(at_.low, 2),
                               .s0 = state,
                               .y = matrix(at_.mixed, 0),
                               .s_out = state,
                               .saved = nullptr,
                               .workspace = work(at_.scan)};
    RWKV_CUDA(type_ == DType::kF16 ? cuda::wkv7_chunk_forward_f16(shape, io, stream_of(ctx_))
                                   : cuda::wkv7_chunk_forward(shape, io, stream_of(ctx_)));
    RWKV_LAUNCHED("recurrence of a prompt", stream_of(ctx_));
  }

  /// Group norm, bonus, gate: to where the second mix was.
  void gated(int layer, bool ends) const {
    launch_prompt_output(type_,
                         {.prompts = prompts_,
                          .heads = l_.shape.heads(),
                          .y = matrix(at_.mixed, 0),
                          .v = matrix(at_.products, 2),
                          .gate = matrix(at_.low, 3),
                          .bonus = bonus(),
                          .params = param(layer, 0),
                          .value_scale = value_scale_,
                          .out = matrix(at_.mixed, 1),
                          .ends = ends},
                         stream_of(ctx_));
  }

  void time_mix(int layer, bool ends) {
    mix(layer, kLn1Weight, kMixR, kInputs, false);
    const int width = l_.shape.width, rows = prompts_.rows();
    std::byte* const mixed = work(at_.mixed);
    events_.fork.record(ctx_);
    for (int i = 1; i < kBatchLanes; ++i) events_.fork.wait(ctx_.lane(i));
    const bool side = static_cast<int64_t>(rows) * width <= kSideBySide;
    for (int i = 0; i < 3; ++i) {
      const auto n = static_cast<size_t>(i);
      product(ctx_.lane(side ? i : 0), mixed + n * matrix_,
              weights(layer) + l_.in_at + n * d_ * d_ * e_, work(at_.products) + n * matrix_, rows,
              width, width, type_);
    }
    // The gate is not needed before the recurrence is over.
    Context& last = ctx_.lane(kBatchLanes - 1);
    const bool few = rows <= kFewRows;
    downs(last, few || width <= kNarrow, {down(layer, 0), down(layer, 1), down(layer, 2)});
    for (int i = 1; i < kBatchLanes; ++i) {
      events_.join[i].record(ctx_.lane(i));
      events_.join[i].wait(ctx_);
    }
    downs(last, few, {down(layer, 3)});
    product(last, middle(3), plain(layer) + plain_.low_at[3], matrix(at_.low, 3), rows, width,
            l_.shape.rank[3], type_, middle_ld());
    events_.join[0].record(last);
    mark("r, k, v, low ranks");

    heads(layer);
    mark("heads");
    walk(layer);
    events_.join[0].wait(ctx_);
    mark("recurrence");
    gated(layer, ends);
    mark("norm and gate");
    product(ctx_, mixed + matrix_, weights(layer) + l_.out_at, work(at_.added),
            ends ? 2 * c_.batch : rows, width, width, type_);
    mark("output");
  }

  void channel_mix(int layer, bool ends) {
    mix(layer, kLn2Weight, kMixFfn, 1, ends);
    const int width = l_.shape.width, ffn = l_.shape.ffn, rows = ends ? c_.batch : prompts_.rows();
    if (static_cast<int64_t>(rows) * ffn >= kFusedKey) {
      launch_prompt_key(type_, work(at_.mixed), weights(layer) + l_.key_at, work(at_.hidden), rows,
                        ffn, width, ctx_.cuda().sm_count, stream_of(ctx_));
    } else {
      product(ctx_, work(at_.mixed), weights(layer) + l_.key_at, work(at_.hidden), rows, ffn, width,
              type_);
      launch_squared_relu(type_, work(at_.hidden), static_cast<int64_t>(rows) * ffn,
                          stream_of(ctx_));
    }
    mark("key");
    product(ctx_, work(at_.hidden), plain(layer) + plain_.value_at, work(at_.added), rows, width,
            ffn, type_);
    mark("value");
  }

  void head() {
    const bool all = c_.losses != nullptr;
    const int rows = all ? prompts_.rows() : c_.batch, vocab = l_.shape.vocab;
    launch_prompt_norm(type_,
                       {.rows = rows,
                        .width = l_.shape.width,
                        .residual = reinterpret_cast<float*>(work(at_.residual[residual_])),
                        .add = work(at_.added),
                        .weight = param(l_.shape.layers, 0),
                        .bias = param(l_.shape.layers, 1),
                        .out = work(at_.mixed)},
                       stream_of(ctx_));
    if (!all)
      product(ctx_, work(at_.mixed), c_.weights + l_.head_at, c_.logits, rows, vocab,
              l_.shape.width, DType::kF32);
    for (int first = 0; all && first < rows; first += kLossRows) {
      const int n = std::min(kLossRows, rows - first);
      auto* const logits = reinterpret_cast<float*>(work(at_.logits));
      product(ctx_, work(at_.mixed) + static_cast<size_t>(first) * d_ * e_, c_.weights + l_.head_at,
              logits, n, vocab, l_.shape.width, DType::kF32);
      launch_prompt_losses(logits, c_.targets + first, c_.losses + first, n, vocab,
                           stream_of(ctx_));
    }
    mark("head");
  }

  Context& ctx_;
  const Layout& l_;
  const PlainLayout& plain_;
  DType type_;
  const PrefillCall& c_;
  BatchEvents& events_;
  Work at_;
  Prompts prompts_;
  size_t d_, e_, matrix_;
  float value_scale_;
  PromptMix mix_;
  PromptStates states_;
  size_t residual_ = 0;
};

}  // namespace

size_t prefill_bytes(const Layout& layout, int batch, int tokens, bool losses) {
  return Work(layout, batch, tokens, losses).bytes;
}

void prefill(Context& ctx, const Layout& layout, const PlainLayout& plain, DType weights,
             const PrefillCall& call, BatchEvents& events) {
  RWKV_ASSERT(ctx.lanes() >= kBatchLanes, ctx.lanes(), " lanes");
  RWKV_ASSERT(call.batch >= 1 && call.tokens >= kPromptRows && call.tokens % kPromptRows == 0,
              "prefill of ", call.batch, " x ", call.tokens);
  Prefill(ctx, layout, plain, weights, call, events).run();
}

}  // namespace rwkv::decode
