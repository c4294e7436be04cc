// A prompt in the parallel form: the order of products and kernels.

#include "kernels/decode/prefill.h"

#include <algorithm>

#include "kernels/core/arena.h"
#include "kernels/core/cuda/cuda_state.h"
#include "kernels/core/error.h"
#include "kernels/core/gemm.h"
#include "kernels/cuda/decode/batch_kernels.h"
#include "kernels/cuda/decode/prefill_kernels.h"
#include "kernels/cuda/decode/small_products.h"
#include "kernels/wkv/cuda/wkv7_cuda.h"

namespace rwkv::decode {
namespace {

using namespace cuda::decode;  // NOLINT: the launchers

constexpr int kInputs = 6;  ///< r, k, v, w, a, g
/// Up to this many rows x width, r, k and v are multiplied side by side: one alone would not fill
/// the GPU.
constexpr int64_t kSideBySide = int64_t{1} << 22;
/// From this many results on, the squared ReLU is part of the product with the key matrix.
constexpr int64_t kFusedKey = int64_t{2048} * 3072;
/// Losses: rows whose logits exist at a time.
constexpr int kLossRows = 256;
/// Sequences are cut into segments, worked on side by side, from this length on and below this
/// many streams (kernels/wkv/auto_table.h).
constexpr int kScanTokens = 192, kScanStreams = 199;
/// In f16, v enters the recurrence times this, so that states up to 10^6 have a place in the
/// operands (kernels/wkv/cuda/wkv7_chunk.cuh). A power of two: nothing is rounded.
constexpr float kHalfValueScale = 1.0f / 16;

cuda::Wkv7Shape recurrence(const Layout& l, int batch, int tokens) {
  cuda::Wkv7Shape s{batch, tokens, l.shape.heads(), kHeadSize, 1};
  if (tokens >= kScanTokens && batch * s.heads < kScanStreams)
    s.segments = cuda::wkv7_scan_segments(s, cuda::kWkv7PlannedProcessors);
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

  void low_ranks(Context& lane, int layer) const {
    constexpr size_t kInputOf[kLowRanks] = {3, 4, 2, 5};
    constexpr ProductAct kAct[kLowRanks] = {ProductAct::kTanh, ProductAct::kNone, ProductAct::kNone,
                                            ProductAct::kSigmoid};
    const int width = l_.shape.width, lows = l_.in_rows() - l_.section[3];
    SmallProduct down[kLowRanks], up[kLowRanks];
    for (int i = 0; i < kLowRanks; ++i) {
      const int rank = l_.shape.rank[i], first = l_.section[3 + i] - l_.section[3];
      std::byte* const middle = work(at_.middle) + static_cast<size_t>(first) * e_;
      down[i] = {.a = work(at_.mixed) + kInputOf[i] * matrix_,
                 .w = weights(layer) + l_.in_at + static_cast<size_t>(l_.section[3 + i]) * d_ * e_,
                 .out = middle,
                 .lda = width,
                 .ldw = width,
                 .ldo = lows,
                 .n = rank,
                 .k = width,
                 .act = kAct[i]};
      up[i] = {.a = middle,
               .w = plain(layer) + plain_.low_at[i],
               .out = work(at_.low) + static_cast<size_t>(i) * matrix_,
               .lda = lows,
               .ldw = rank,
               .ldo = width,
               .n = width,
               .k = rank};
    }
    if (width <= kNarrow || prompts_.rows() <= 128) {
      launch_small_products(type_, prompts_.rows(), {down[0], down[1], down[2], down[3]},
                            stream_of(lane));
      launch_small_products(type_, prompts_.rows(), {up[0], up[1], up[2], up[3]}, stream_of(lane));
      return;
    }
    const auto multiply = [&](const SmallProduct& p) {
      product(lane, p.a, static_cast<const std::byte*>(p.w), p.out, prompts_.rows(), p.n, p.k,
              type_, p.lda, p.ldo);
    };
    for (const SmallProduct& p : down) multiply(p);
    launch_prompt_activations(type_, work(at_.middle), prompts_.rows(), lows, l_.shape.rank[0],
                              l_.section[6] - l_.section[3], stream_of(lane));
    for (const SmallProduct& p : up) multiply(p);
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
    low_ranks(ctx_.lane(kBatchLanes - 1), layer);
    for (int i = 1; i < kBatchLanes; ++i) {
      events_.join[i].record(ctx_.lane(i));
      events_.join[i].wait(ctx_);
    }
    mark("r, k, v, low ranks");

    std::byte *const r = work(at_.products), *const k = r + matrix_, *const v = k + matrix_;
    std::byte *const w = work(at_.low), *const b = w + matrix_, *const a = b + matrix_,
                     *const gate = a + matrix_;
    auto* const bonus = reinterpret_cast<float*>(work(at_.bonus));
    launch_prompt_heads(type_,
                        {.prompts = prompts_,
                         .heads = l_.shape.heads(),
                         .layer = layer,
                         .r = r,
                         .k = k,
                         .v = v,
                         .low = {w, b, a},
                         .v_first = work(at_.v_first),
                         .bonus = bonus,
                         .params = param(layer, 0),
                         .value_scale = value_scale_},
                        stream_of(ctx_));
    mark("heads");

    const cuda::Wkv7Shape shape = recurrence(l_, c_.batch, c_.tokens);
    float* const state = states_.states + static_cast<size_t>(layer) *
                                              static_cast<size_t>(c_.batch * l_.shape.heads()) *
                                              (kHeadSize * kHeadSize);
    const cuda::Wkv7Forward io{.r = r,
                               .w = w,
                               .k = k,
                               .v = v,
                               .a = a,
                               .b = b,
                               .s0 = state,
                               .y = mixed,
                               .s_out = state,
                               .saved = nullptr,
                               .workspace = work(at_.scan)};
    RWKV_CUDA(type_ == DType::kF16 ? cuda::wkv7_chunk_forward_f16(shape, io, stream_of(ctx_))
                                   : cuda::wkv7_chunk_forward(shape, io, stream_of(ctx_)));
    RWKV_LAUNCHED("recurrence of a prompt", stream_of(ctx_));
    mark("recurrence");

    launch_prompt_output(type_,
                         {.prompts = prompts_,
                          .heads = l_.shape.heads(),
                          .y = mixed,
                          .v = v,
                          .gate = gate,
                          .bonus = bonus,
                          .params = param(layer, 0),
                          .value_scale = value_scale_,
                          .out = mixed + matrix_,
                          .ends = ends},
                         stream_of(ctx_));
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
