// One token of many sequences: the order of products and kernels.

#include "kernels/decode/batch.h"

#include <algorithm>

#include "kernels/core/arena.h"
#include "kernels/core/error.h"
#include "kernels/core/gemm.h"
#include "kernels/cuda/decode/batch_kernels.h"
#include "kernels/cuda/decode/products.h"
#include "kernels/decode/step.h"

namespace rwkv::decode {
namespace {

using cuda::decode::HeadLows;
using cuda::decode::Heads;
using cuda::decode::Mix;
using cuda::decode::Product;
using cuda::decode::ProductAct;
using cuda::decode::ProductLaunch;

constexpr int kInputs = 6;  ///< r, k, v, w, a, g
/// What the low-rank maps w, a, v, g read of them.
constexpr size_t kInputOf[kLowRanks] = {3, 4, 2, 5};
constexpr ProductAct kAct[kLowRanks] = {ProductAct::kTanh, ProductAct::kNone, ProductAct::kNone,
                                        ProductAct::kSigmoid};

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
    gate = place(2 * sizeof(uint32_t));  // first, so that its place does not depend on the rows
    residual = place(b * d * sizeof(float));
    mixed = place(kInputs * b * d * e);
    products = place(3 * b * d * e);
    middle = place(b * static_cast<size_t>(l.in_rows() - l.section[3]) * e);
    low = place(kLowRanks * b * d * e);
    v_first = place(b * d * e);
    gated = place(b * d * e);
    added = place(b * d * e);
    hidden = place(b * static_cast<size_t>(l.shape.ffn) * e);
    sums = bytes;
  }
  size_t bytes = 0, gate, residual, mixed, products, middle, low, v_first, gated, added, hidden,
         sums;
};

cudaStream_t stream_of(const Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream());
}

/// What the products of a kind read and write in a layer.
std::vector<Product> products_of(const Layout& l, const PlainLayout& plain, const BatchCall& c,
                                 int kind, int layer) {
  const Work at(l, c.rows);
  const auto d = static_cast<size_t>(l.shape.width), e = static_cast<size_t>(l.element),
             matrix = static_cast<size_t>(c.rows) * d * e, index = static_cast<size_t>(layer);
  const std::byte* const w = c.weights + index * l.layer_bytes;
  const std::byte* const more = c.plain + index * plain.layer_bytes;
  const int width = l.shape.width, ffn = l.shape.ffn, lows = l.in_rows() - l.section[3];
  const auto one = [&](size_t x, const std::byte* from, size_t y, int n, int k, ProductAct act) {
    return Product{.x = c.work + x,
                   .w = from,
                   .y = c.work + y,
                   .ldx = k,
                   .ldw = k,
                   .ldy = n,
                   .n = n,
                   .k = k,
                   .act = act};
  };
  std::vector<Product> all;
  switch (kind) {
    case kInProducts:
    case kDown:
      // Low ranks first: others wait for them.
      for (int i = 0; i < kLowRanks; ++i) {
        const auto first = static_cast<size_t>(l.section[3 + i] - l.section[3]);
        all.push_back(one(at.mixed + kInputOf[i] * matrix,
                          w + l.in_at + static_cast<size_t>(l.section[3 + i]) * d * e,
                          at.middle + first * e, l.shape.rank[i], width, kAct[i]));
        all.back().ldy = lows;
      }
      for (size_t i = 0; i < 3 && kind == kInProducts; ++i)
        all.push_back(one(at.mixed + i * matrix, w + l.in_at + i * d * d * e,
                          at.products + i * matrix, width, width, ProductAct::kNone));
      break;
    case kUp:
      for (int i = 0; i < kLowRanks; ++i) {
        const auto first = static_cast<size_t>(l.section[3 + i] - l.section[3]);
        all.push_back(one(at.middle + first * e, more + plain.low_at[i],
                          at.low + static_cast<size_t>(i) * matrix, width, l.shape.rank[i],
                          ProductAct::kNone));
        all.back().ldx = lows;
      }
      break;
    case kOut:
      all.push_back(one(at.gated, w + l.out_at, at.added, width, width, ProductAct::kNone));
      break;
    case kKey:
      all.push_back(one(at.mixed, w + l.key_at, at.hidden, ffn, width, ProductAct::kSquaredRelu));
      break;
    case kValue:
      all.push_back(one(at.hidden, more + plain.value_at, at.added, width, ffn, ProductAct::kNone));
      break;
    default:
      all.push_back(
          one(at.mixed, c.weights + l.head_at, 0, l.shape.vocab, width, ProductAct::kNone));
      all.back().y = c.logits;
      all.back().wide = true;
  }
  // What the heads read.
  for (Product& p : all) p.keep = kind == kInProducts || kind == kDown || kind == kUp;
  return all;
}

class Step {
 public:
  Step(Context& ctx, const Layout& layout, const PlainLayout& plain, DType type,
       const BatchCall& call)
      : ctx_(ctx),
        l_(layout),
        plain_(plain),
        type_(type),
        c_(call),
        at_(layout, call.rows),
        processors_(multiprocessors(ctx)) {}

  void products(int kind, int layer) const {
    const auto all = products_of(l_, plain_, c_, kind, layer);
    launch_products(launch_of(all, kind), all, stream_of(ctx_));
  }
  /// r, k, v and the low-rank maps: one launch if the second maps fit into its last round, or are
  /// left to the heads.
  void in_products(int layer) const {
    if (lows_with_heads(layer)) {
      products(kInProducts, layer);
      return;
    }
    const auto all = products_of(l_, plain_, c_, kInProducts, layer),
               late = products_of(l_, plain_, c_, kUp, layer);
    ProductLaunch launch = launch_of(all, kInProducts);
    launch.late = {.products = late,
                   .pieces = product_pieces(late),
                   .makers = kLowRanks,
                   .gate = reinterpret_cast<uint32_t*>(c_.work + at_.gate)};
    const bool together = cuda::decode::late_products_fit(launch, all);
    if (!together) launch.late = {};
    launch_products(launch, all, stream_of(ctx_));
    if (!together) products(kUp, layer);
  }
  /// The second low-rank products are in the launch of the heads.
  bool lows_with_heads(int layer) const {
    return !c_.vendor && heads_take_lows(heads(layer), lows(layer));
  }
  /// By cuBLASLt, without activation.
  void vendor(Context& lane, const Product& p) const {
    gemm(lane, {.m = c_.rows,
                .n = p.n,
                .k = p.k,
                .a = p.x,
                .b = p.w,
                .c = p.y,
                .lda = p.ldx,
                .ldb = p.ldw,
                .ldc = p.ldy,
                .trans_b = true,
                .dtype = type_,
                .out_dtype = p.wide ? DType::kF32 : type_});
  }
  void either(int kind, int layer) const {
    if (c_.vendor)
      vendor(ctx_, products_of(l_, plain_, c_, kind, layer).front());
    else
      products(kind, layer);
  }
  /// Kernels overlap unless events and libraries are between them.
  bool overlap() const { return !c_.vendor; }

  void layers(BatchEvents& events) const;

 private:
  ProductLaunch launch_of(std::span<const Product> all, int kind) const {
    return {.type = type_,
            .rows = c_.rows,
            .pieces = product_pieces(all),
            .multiprocessors = processors_,
            .plan = c_.plans[static_cast<size_t>(kind)],
            .memory = c_.work + at_.sums,
            .overlap = overlap()};
  }
  void in(int layer, BatchEvents& events) const;
  Heads heads(int layer) const;
  HeadLows lows(int layer) const;

  Context& ctx_;
  const Layout& l_;
  const PlainLayout& plain_;
  DType type_;
  const BatchCall& c_;
  Work at_;
  int processors_;
};

void Step::in(int layer, BatchEvents& events) const {
  if (!c_.vendor) {
    in_products(layer);
    return;
  }
  // r, k, v and the low-rank maps, side by side.
  events.fork.record(ctx_);
  for (int i = 1; i < kBatchLanes; ++i) events.fork.wait(ctx_.lane(i));
  const auto all = products_of(l_, plain_, c_, kInProducts, layer);
  for (int i = 0; i < 3; ++i) vendor(ctx_.lane(i), all[static_cast<size_t>(kLowRanks + i)]);
  const Step last(ctx_.lane(kBatchLanes - 1), l_, plain_, type_, c_);
  last.products(kDown, layer);
  last.products(kUp, layer);
  for (int i = 1; i < kBatchLanes; ++i) {
    events.join[i].record(ctx_.lane(i));
    events.join[i].wait(ctx_);
  }
}

Heads Step::heads(int layer) const {
  const auto d = static_cast<size_t>(l_.shape.width),
             matrix = static_cast<size_t>(c_.rows) * d * static_cast<size_t>(l_.element);
  const size_t state = static_cast<size_t>(kHeadSize * kHeadSize) * (c_.half_state ? 2 : 4) *
                       static_cast<size_t>(l_.shape.heads());
  const auto index = static_cast<size_t>(layer);
  Heads h;
  h.rows = c_.rows;
  h.heads = l_.shape.heads();
  h.layer = layer;
  h.all_slots = c_.all_slots;
  h.multiprocessors = processors_;
  h.r = c_.work + at_.products;
  h.k = c_.work + at_.products + matrix;
  h.v = c_.work + at_.products + 2 * matrix;
  for (size_t i = 0; i < kLowRanks; ++i) h.low[i] = c_.work + at_.low + i * matrix;
  h.v_first = c_.work + at_.v_first;
  h.params = c_.params + index * kParams * d;
  h.wkv = c_.wkv + index * state;
  h.wkv_stride = static_cast<int64_t>(state) * l_.shape.layers;
  h.half_state = c_.half_state;
  h.exponents = c_.exponents + index * d;
  h.exponents_stride = int64_t{l_.shape.width} * l_.shape.layers;
  h.scale = c_.state_scale;
  h.inverse = 1 / c_.state_scale;
  h.slots = c_.slots;
  h.elapsed = c_.elapsed;
  h.out = c_.work + at_.gated;
  return h;
}

HeadLows Step::lows(int layer) const {
  HeadLows lows;
  const auto of = products_of(l_, plain_, c_, kUp, layer);
  lows.middle = c_.work + at_.middle;
  lows.ld = of.front().ldx;
  for (size_t i = 0; i < kLowRanks; ++i) {
    lows.w[i] = of[i].w;
    lows.rank[i] = of[i].k;
    lows.first[i] = l_.section[3 + i] - l_.section[3];
  }
  return lows;
}

void Step::layers(BatchEvents& events) const {
  const auto d = static_cast<size_t>(l_.shape.width), e = static_cast<size_t>(l_.element);
  const auto mark = [&](const char* stage) {
    if (c_.mark != nullptr) (*c_.mark)(stage);
  };
  Mix mix;
  mix.rows = c_.rows;
  mix.width = l_.shape.width;
  mix.multiprocessors = processors_;
  mix.residual = reinterpret_cast<float*>(c_.work + at_.residual);
  mix.slots = c_.slots;
  mix.elapsed = c_.elapsed;
  mix.tokens = c_.tokens;
  mix.shift_stride = static_cast<int64_t>(l_.shape.layers) * 2 * l_.shape.width;
  mix.out = c_.work + at_.mixed;
  for (int layer = 0; layer < l_.shape.layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    const float* const params = c_.params + index * kParams * d;
    const auto param = [&](Param p) { return params + static_cast<size_t>(p) * d; };
    mix.embedding = layer == 0 ? c_.weights + l_.embedding_at : nullptr;
    mix.add = layer == 0 ? nullptr : c_.work + at_.added;
    mix.weight = param(kLn1Weight);
    mix.bias = param(kLn1Bias);
    mix.mix = param(kMixR);
    mix.outputs = kInputs;
    mix.shift = c_.shift + index * 2 * d * e;
    launch_mix(type_, mix, overlap(), stream_of(ctx_));
    mark("mix");
    in(layer, events);
    mark("r, k, v, low ranks");
    if (lows_with_heads(layer))
      launch_heads_with_lows(type_, heads(layer), lows(layer), overlap(), stream_of(ctx_));
    else
      launch_heads(type_, heads(layer), overlap(), stream_of(ctx_));
    mark("heads");
    either(kOut, layer);
    mark("output");

    mix.embedding = nullptr;
    mix.add = c_.work + at_.added;
    mix.weight = param(kLn2Weight);
    mix.bias = param(kLn2Bias);
    mix.mix = param(kMixFfn);
    mix.outputs = 1;
    mix.shift = c_.shift + (index * 2 + 1) * d * e;
    launch_mix(type_, mix, overlap(), stream_of(ctx_));
    mark("mix");
    either(kKey, layer);
    if (c_.vendor)
      cuda::decode::launch_squared_relu(type_, c_.work + at_.hidden,
                                        static_cast<int64_t>(c_.rows) * l_.shape.ffn,
                                        stream_of(ctx_));
    mark("key");
    either(kValue, layer);
    mark("value");
  }
  mix.weight = c_.params + static_cast<size_t>(l_.shape.layers) * kParams * d;
  mix.bias = mix.weight + d;
  mix.mix = nullptr;
  launch_mix(type_, mix, overlap(), stream_of(ctx_));
  either(kHead, 0);
  mark("head");
}

}  // namespace

const char* batch_product_name(int kind) {
  static constexpr const char* kNames[kBatchProducts] = {
      "r, k, v, low ranks", "low ranks", "low ranks up", "output", "key", "value", "head"};
  RWKV_ASSERT(kind >= 0 && kind < kBatchProducts, "product ", kind);
  return kNames[kind];
}

size_t batch_bytes(const Layout& layout, int rows, int multiprocessors) {
  return Work(layout, rows).bytes +
         cuda::decode::product_bytes(rows, cuda::decode::kMostPieces, multiprocessors);
}

std::vector<ProductPlan> batch_plans(const Layout& layout, const PlainLayout& plain, int kind,
                                     int rows, int multiprocessors) {
  const BatchCall sizes{.rows = rows};
  const auto all = products_of(layout, plain, sizes, kind, 0);
  return product_plans(all, rows, product_pieces(all), multiprocessors);
}

void batch_step(Context& ctx, const Layout& layout, const PlainLayout& plain, DType type,
                const BatchCall& call, BatchEvents& events) {
  RWKV_ASSERT(ctx.lanes() >= kBatchLanes || !call.vendor, ctx.lanes(), " lanes");
  Step(ctx, layout, plain, type, call).layers(events);
}

void batch_products(Context& ctx, const Layout& layout, const PlainLayout& plain, DType type,
                    const BatchCall& call, int kind) {
  const Step step(ctx, layout, plain, type, call);
  for (int layer = 0; layer < (kind == kHead ? 1 : layout.shape.layers); ++layer)
    if (kind == kInProducts)
      step.in_products(layer);
    else
      step.products(kind, layer);
}

}  // namespace rwkv::decode
