// One token of many sequences: the order of products and kernels.

#include "kernels/decode/batch.h"

#include <algorithm>

#include "kernels/core/arena.h"
#include "kernels/core/error.h"
#include "kernels/core/gemm.h"
#include "kernels/cuda/decode/batch_kernels.h"

namespace rwkv::decode {
namespace {

using cuda::decode::Heads;
using cuda::decode::launch_products;
using cuda::decode::Mix;
using cuda::decode::Product;
using cuda::decode::ProductAct;

constexpr int kInputs = 6;  ///< r, k, v, w, a, g
/// Parts of k in our own products with W_o and the value matrix, so that more blocks have work.
constexpr int kOutParts = 2, kValueParts = 4;

/// Places of the activations, bytes.
struct Work {
  Work(const Layout& l, int rows) {
    const auto b = static_cast<size_t>(rows), d = static_cast<size_t>(l.shape.width),
               e = static_cast<size_t>(l.element);
    const auto place = [&](size_t n) {
      const size_t at = bytes;
      bytes += align_up(n);
      return at;
    };
    residual = place(b * d * sizeof(float));
    mixed = place(kInputs * b * d * e);
    products = place(3 * b * d * e);
    middle = place(b * static_cast<size_t>(l.in_rows() - l.section[3]) * e);
    low = place(kLowRanks * b * d * e);
    v_first = place(b * d * e);
    gated = place(b * d * e);
    added = place(std::max(kValueParts * b * d * sizeof(float), b * d * e));
    hidden = place(b * static_cast<size_t>(l.shape.ffn) * e);
  }
  size_t bytes = 0, residual, mixed, products, middle, low, v_first, gated, added, hidden;
};

cudaStream_t stream_of(const Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream());
}

}  // namespace

size_t batch_bytes(const Layout& layout, int rows) {
  return Work(layout, rows).bytes;
}

void batch_step(Context& ctx, const Layout& l, const PlainLayout& plain, DType type,
                const BatchCall& c, BatchEvents& events) {
  RWKV_ASSERT(ctx.lanes() >= kBatchLanes, ctx.lanes(), " lanes");
  const Work at(l, c.rows);
  const auto d = static_cast<size_t>(l.shape.width), b = static_cast<size_t>(c.rows),
             e = static_cast<size_t>(l.element);
  const size_t matrix = b * d * e;
  const int width = l.shape.width, lows = l.in_rows() - l.section[3];
  /// y (rows, n) = x (rows, k) W^T.
  const auto product = [&](Context& lane, const std::byte* x, const std::byte* w, void* y, int n,
                           int k, DType out) {
    gemm(lane, {.m = c.rows,
                .n = n,
                .k = k,
                .a = x,
                .b = w,
                .c = y,
                .lda = k,
                .ldb = k,
                .ldc = n,
                .trans_b = true,
                .dtype = type,
                .out_dtype = out});
  };
  const auto mark = [&](const char* stage) {
    if (c.mark != nullptr) (*c.mark)(stage);
  };
  Mix mix;
  mix.rows = c.rows;
  mix.width = width;
  mix.residual = reinterpret_cast<float*>(c.work + at.residual);
  mix.slots = c.slots;
  mix.elapsed = c.elapsed;
  mix.shift_stride = static_cast<int64_t>(l.shape.layers) * 2 * width;
  const size_t state = static_cast<size_t>(kHeadSize * kHeadSize) * (c.half_state ? 2 : 4) *
                       static_cast<size_t>(l.shape.heads());
  for (int layer = 0; layer < l.shape.layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    const std::byte* const w = c.weights + index * l.layer_bytes;
    const std::byte* const more = c.plain + index * plain.layer_bytes;
    const float* const params = c.params + index * kParams * d;
    const auto param = [&](Param p) { return params + static_cast<size_t>(p) * d; };

    mix.embedding = layer == 0 ? c.weights + l.embedding_at : nullptr;
    mix.tokens = c.tokens;
    mix.add = layer == 0 ? nullptr : c.work + at.added;
    mix.add_parts = layer > 0 && c.own_products ? kValueParts : 0;
    mix.weight = param(kLn1Weight);
    mix.bias = param(kLn1Bias);
    mix.mix = param(kMixR);
    mix.outputs = kInputs;
    mix.shift = c.shift + index * 2 * d * e;
    mix.out = c.work + at.mixed;
    launch_mix(type, mix, stream_of(ctx));

    mark("mix");

    // Products with r, k, v and the low-rank maps, side by side.
    if (!c.own_products) {
      events.fork.record(ctx);
      for (int i = 1; i < kBatchLanes; ++i) events.fork.wait(ctx.lane(i));
    }
    const std::byte* const mixed = c.work + at.mixed;
    Product large[3];
    for (int i = 0; i < 3; ++i) {
      const auto n = static_cast<size_t>(i);
      large[i] = {.a = mixed + n * matrix,
                  .w = w + l.in_at + n * d * d * e,
                  .out = c.work + at.products + n * matrix,
                  .lda = width,
                  .ldw = width,
                  .ldo = width,
                  .n = width,
                  .k = width};
      if (!c.own_products)
        product(ctx.lane(i), mixed + n * matrix, w + l.in_at + n * d * d * e,
                c.work + at.products + n * matrix, width, width, type);
    }
    Product down[kLowRanks], up[kLowRanks];
    constexpr size_t kInputOf[kLowRanks] = {3, 4, 2, 5};
    constexpr ProductAct kAct[kLowRanks] = {ProductAct::kTanh, ProductAct::kNone, ProductAct::kNone,
                                            ProductAct::kSigmoid};
    for (int i = 0; i < kLowRanks; ++i) {
      const auto n = static_cast<size_t>(i);
      const auto first = static_cast<size_t>(l.section[3 + i] - l.section[3]);
      const int rank = l.shape.rank[i];
      down[i] = {.a = mixed + kInputOf[i] * matrix,
                 .w = w + l.in_at + static_cast<size_t>(l.section[3 + i]) * d * e,
                 .out = c.work + at.middle + first * e,
                 .lda = width,
                 .ldw = width,
                 .ldo = lows,
                 .n = rank,
                 .k = width,
                 .act = kAct[i]};
      up[i] = {.a = c.work + at.middle + first * e,
               .w = more + plain.low_at[i],
               .out = c.work + at.low + n * matrix,
               .lda = lows,
               .ldw = rank,
               .ldo = width,
               .n = width,
               .k = rank};
    }
    if (c.own_products) {
      launch_products(type, c.rows,
                      {large[0], large[1], large[2], down[0], down[1], down[2], down[3]},
                      stream_of(ctx));
      launch_products(type, c.rows, {up[0], up[1], up[2], up[3]}, stream_of(ctx));
    } else {
      Context& last = ctx.lane(kBatchLanes - 1);
      launch_products(type, c.rows, {down[0], down[1], down[2], down[3]}, stream_of(last));
      launch_products(type, c.rows, {up[0], up[1], up[2], up[3]}, stream_of(last));
      for (int i = 1; i < kBatchLanes; ++i) {
        events.join[i].record(ctx.lane(i));
        events.join[i].wait(ctx);
      }
    }
    mark("r, k, v, low ranks");

    Heads heads;
    heads.rows = c.rows;
    heads.heads = l.shape.heads();
    heads.layer = layer;
    heads.r = c.work + at.products;
    heads.k = c.work + at.products + matrix;
    heads.v = c.work + at.products + 2 * matrix;
    for (size_t i = 0; i < kLowRanks; ++i) heads.low[i] = c.work + at.low + i * matrix;
    heads.v_first = c.work + at.v_first;
    heads.params = params;
    heads.wkv = c.wkv + index * state;
    heads.wkv_stride = static_cast<int64_t>(state) * l.shape.layers;
    heads.half_state = c.half_state;
    heads.scale = c.state_scale;
    heads.inverse = 1 / c.state_scale;
    heads.slots = c.slots;
    heads.elapsed = c.elapsed;
    heads.out = c.work + at.gated;
    launch_heads(type, heads, stream_of(ctx));
    mark("heads");
    if (c.own_products)
      launch_products(type, c.rows,
                      {{.a = c.work + at.gated,
                        .w = w + l.out_at,
                        .out = c.work + at.added,
                        .lda = width,
                        .ldw = width,
                        .ldo = width,
                        .n = width,
                        .k = width,
                        .parts = kOutParts}},
                      stream_of(ctx));
    else
      product(ctx, c.work + at.gated, w + l.out_at, c.work + at.added, width, width, type);
    mark("output");

    mix.embedding = nullptr;
    mix.add = c.work + at.added;
    mix.add_parts = c.own_products ? kOutParts : 0;
    mix.weight = param(kLn2Weight);
    mix.bias = param(kLn2Bias);
    mix.mix = param(kMixFfn);
    mix.outputs = 1;
    mix.shift = c.shift + (index * 2 + 1) * d * e;
    launch_mix(type, mix, stream_of(ctx));
    mark("mix");
    if (c.own_products) {
      launch_products(type, c.rows,
                      {{.a = c.work + at.mixed,
                        .w = w + l.key_at,
                        .out = c.work + at.hidden,
                        .lda = width,
                        .ldw = width,
                        .ldo = l.shape.ffn,
                        .n = l.shape.ffn,
                        .k = width,
                        .act = ProductAct::kSquaredRelu}},
                      stream_of(ctx));
      mark("key");
      launch_products(type, c.rows,
                      {{.a = c.work + at.hidden,
                        .w = more + plain.value_at,
                        .out = c.work + at.added,
                        .lda = l.shape.ffn,
                        .ldw = l.shape.ffn,
                        .ldo = width,
                        .n = width,
                        .k = l.shape.ffn,
                        .parts = kValueParts}},
                      stream_of(ctx));
    } else {
      product(ctx, c.work + at.mixed, w + l.key_at, c.work + at.hidden, l.shape.ffn, width, type);
      mark("key");
      cuda::decode::launch_squared_relu(type, c.work + at.hidden,
                                        static_cast<int64_t>(c.rows) * l.shape.ffn, stream_of(ctx));
      mark("squared relu");
      product(ctx, c.work + at.hidden, more + plain.value_at, c.work + at.added, width, l.shape.ffn,
              type);
    }
    mark("value");
  }
  mix.embedding = nullptr;
  mix.add = c.work + at.added;
  mix.add_parts = c.own_products ? kValueParts : 0;
  mix.weight = c.params + static_cast<size_t>(l.shape.layers) * kParams * d;
  mix.bias = mix.weight + d;
  mix.mix = nullptr;
  mix.out = c.work + at.mixed;
  launch_mix(type, mix, stream_of(ctx));
  product(ctx, c.work + at.mixed, c.weights + l.head_at, c.logits, l.shape.vocab, width,
          DType::kF32);
  mark("head");
}

}  // namespace rwkv::decode
