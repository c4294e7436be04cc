#include "inference/decode_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "inference/decode_weights.h"
#include "inference/stage_times.h"
#include "kernels/core/backend.h"
#include "kernels/core/bf16.h"
#include "kernels/core/error.h"
#include "kernels/core/gemm.h"
#include "kernels/core/half.h"

namespace rwkv {
namespace {

using decode::Layout;

/// Random weights that are drawn; the rest repeats them. Prime, so that rows differ.
constexpr size_t kDraws = 1000003;
constexpr int64_t kMostRows = 4096;
/// Of a plan whose blocks share loads, against one of the same time that does not.
constexpr double kSharedCost = 0.97;

struct ReleaseEvent {
  void operator()(void* event) const { backend::cuda_event_release(event); }
};
using Event = std::unique_ptr<void, ReleaseEvent>;

TensorSpec bytes_of(size_t n) {
  return TensorSpec({static_cast<int64_t>(n)}, DType::kI8);
}

}  // namespace

DecodeModel::DecodeModel(Context& ctx, const decode::Shape& shape, const DecodeOptions& options)
    : ctx_(ctx), options_(options) {
  RWKV_CHECK(options_.dtype == DType::kF16 || options_.dtype == DType::kBF16 ||
                 options_.dtype == DType::kF32,
             ConfigError, "decoding: weights of type ", dtype_name(options_.dtype),
             ", expected f16, bf16 or f32");
  RWKV_CHECK(ctx.device() == Device::kCuda, ConfigError, "decoding kernels need device cuda");
  RWKV_CHECK(options_.slots >= 1, ConfigError, "decoding: ", options_.slots, " slots");
  layout_ = decode::make_layout(shape, options_.dtype, decode::multiprocessors(ctx),
                                options_.splits, options_.slice);
  const bool small = shape.width <= decode::kNarrow;
  if (options_.stream_value < 0) options_.stream_value = small ? 1 : 0;
  if (options_.flight < 0) options_.flight = shape.width <= 2048 ? 2 : 3;
  if (options_.nap < 0) options_.nap = 0;
  const bool batches = !options_.buckets.empty();
  // One more state for the rows that fill a bucket up.
  const int64_t slots = options_.slots + (batches ? 1 : 0), layers = shape.layers, d = shape.width;
  const TensorSpec shift({slots, layers * 2, d}, options_.dtype),
      wkv({slots, layers * shape.heads(), decode::kHeadSize, decode::kHeadSize},
          options_.half_state ? DType::kF16 : DType::kF32),
      exponents({slots, layers * shape.heads() * decode::kHeadSize}, DType::kI8),
      elapsed({slots}, DType::kI32), ids({2}, DType::kI32), logits({shape.vocab});
  weights_ = Arena(Device::kCuda, layout_.bytes, "weights for decoding");
  params_ = Arena(Device::kCuda, align_up(layout_.params() * sizeof(float)),
                  "vectors of weights for decoding");
  states_ = Arena(Device::kCuda,
                  align_up(shift.bytes()) + align_up(wkv.bytes()) + align_up(exponents.bytes()) +
                      align_up(elapsed.bytes()),
                  "states");
  shift_ = states_.take(shift, "shift states");
  wkv_ = states_.take(wkv, "WKV states");
  exponents_ = states_.take(exponents, "exponents of WKV states");
  elapsed_ = states_.take(elapsed, "counters");
  const size_t exchange = decode::exchange_bytes(layout_);
  work_ = Arena(Device::kCuda,
                align_up(ids.bytes()) + align_up(logits.bytes()) + align_up(exchange), "decoding");
  ids_ = work_.take(ids, "slot and token");
  logits_ = work_.take(logits, "logits");
  exchange_ = work_.take(bytes_of(exchange), "exchange");
  host_ids_ = HostBuffer(Device::kCuda, ids.bytes());
  if (!batches && !options_.prefill) return;
  RWKV_CHECK(options_.dtype != DType::kF32, ConfigError,
             "decoding of batches, prefill: weights of type f32, expected f16 or bf16");
  plain_layout_ = decode::make_plain_layout(layout_);
  plain_ = Arena(Device::kCuda, plain_layout_.bytes, "weights for batches and prefill");
  if ((options_.prefill || options_.vendor) && ctx_.lanes() < decode::kBatchLanes)
    ctx_.open_lanes(decode::kBatchLanes);
  if (!batches) return;
  int64_t largest = 0;
  for (const int64_t b : options_.buckets) {
    RWKV_CHECK(b > largest && b <= kMostRows, ConfigError, "decoding: bucket ", b,
               ", expected numbers from 1 to ", kMostRows, " in ascending order");
    largest = b;
  }
  const TensorSpec batch_ids({2, largest}, DType::kI32), all_logits({largest, shape.vocab}),
      work = bytes_of(
          decode::batch_bytes(layout_, static_cast<int>(largest), decode::multiprocessors(ctx)));
  batch_ =
      Arena(Device::kCuda,
            align_up(batch_ids.bytes()) + align_up(all_logits.bytes()) + align_up(work.bytes()),
            "decoding of batches");
  batch_ids_ = batch_.take(batch_ids, "slots and tokens");
  all_logits_ = batch_.take(all_logits, "logits");
  batch_work_ = batch_.take(work, "activations");
  fill_zero(ctx_, batch_work_);
  host_batch_ = HostBuffer(Device::kCuda, batch_ids.bytes());
}

DecodeModel::DecodeModel(Context& ctx, const Model& model, const ParamStore& weights,
                         const DecodeOptions& options)
    : DecodeModel(ctx, decode_shape(model.config()), options) {
  const auto sink_to = [&](Arena& arena) {
    return [this, &arena](size_t offset, std::span<const std::byte> bytes) {
      const TensorSpec spec = bytes_of(bytes.size());
      // Copied from, not to: the source is only read.
      copy(ctx_, arena.at(offset, spec), TensorView(const_cast<std::byte*>(bytes.data()), spec));
      ctx_.synchronize("upload of weights");
    };
  };
  pack_decode_weights(layout_, options_.dtype, model, weights, sink_to(weights_));
  if (plain_.bytes() > 0)
    pack_plain_weights(layout_, plain_layout_, options_.dtype, model, weights, sink_to(plain_));
  auto vectors = pack_decode_params(layout_, model, weights);
  const TensorSpec spec({static_cast<int64_t>(vectors.size())});
  copy(ctx_, params_.at(0, spec), TensorView(vectors.data(), spec));
  ctx_.synchronize("upload of weights");
}

DecodeModel::DecodeModel(Context& ctx, const ModelConfig& config, uint64_t seed,
                         const DecodeOptions& options)
    : DecodeModel(ctx, decode_shape(config), options) {
  const Rng rng(seed, hash_name("decode weights"));
  const double scale = 0.5 / std::sqrt(static_cast<double>(layout_.shape.width));
  const auto element = static_cast<size_t>(layout_.element);
  std::vector<std::byte> drawn(kDraws * element);
  for (size_t i = 0; i < kDraws; ++i) {
    const auto x = static_cast<float>(scale * rng.normal(i));
    const F16 half = to_half(x);
    const BF16 brain = to_bf16(x);
    const void* const from = options_.dtype == DType::kF16    ? static_cast<const void*>(&half)
                             : options_.dtype == DType::kBF16 ? static_cast<const void*>(&brain)
                                                              : &x;
    std::memcpy(drawn.data() + i * element, from, element);
  }
  const auto fill = [&](const Arena& arena) {
    size_t done = std::min(drawn.size(), arena.bytes());
    if (done == 0) return;
    copy(ctx_, arena.at(0, bytes_of(done)), TensorView(drawn.data(), bytes_of(done)));
    while (done < arena.bytes()) {
      const size_t more = std::min(done, arena.bytes() - done);
      copy(ctx_, arena.at(done, bytes_of(more)), arena.at(0, bytes_of(more)));
      done += more;
    }
  };
  fill(weights_);
  fill(plain_);
  auto vectors = random_decode_params(layout_, seed);
  const TensorSpec spec({static_cast<int64_t>(vectors.size())});
  copy(ctx_, params_.at(0, spec), TensorView(vectors.data(), spec));
  ctx_.synchronize("upload of weights");
}

size_t DecodeModel::state_bytes() const {
  return (shift_.bytes() + wkv_.bytes() + exponents_.bytes() + elapsed_.bytes()) /
         static_cast<size_t>(options_.slots);
}

TensorView DecodeModel::shift_of(int64_t slot) const {
  const TensorView v = shift_.slice(slot, slot + 1);
  return {v.data, TensorSpec({layout_.shape.layers, 2, layout_.shape.width}, options_.dtype),
          Device::kCuda};
}

TensorView DecodeModel::wkv_of(int64_t slot) const {
  const TensorView v = wkv_.slice(slot, slot + 1);
  return {v.data,
          TensorSpec(
              {layout_.shape.layers, layout_.shape.heads(), decode::kHeadSize, decode::kHeadSize},
              v.spec.dtype),
          Device::kCuda};
}

TensorView DecodeModel::exponents_of(int64_t slot) const {
  const TensorView v = exponents_.slice(slot, slot + 1);
  return {v.data,
          TensorSpec({layout_.shape.layers, layout_.shape.heads(), decode::kHeadSize}, DType::kI8),
          Device::kCuda};
}

void DecodeModel::reset(int64_t slot) {
  for (const TensorView& all : {shift_, wkv_, exponents_, elapsed_})
    fill_zero(ctx_, all.slice(slot, slot + 1));
}

void DecodeModel::copy_state(int64_t to, int64_t from) {
  for (const TensorView& all : {shift_, wkv_, exponents_, elapsed_})
    copy(ctx_, all.slice(to, to + 1), all.slice(from, from + 1));
}

decode::StepCall DecodeModel::call() const {
  const auto bytes = [](const TensorView& v) { return static_cast<std::byte*>(v.data); };
  const auto* const ids = ids_.as<int32_t>();
  return {.weights = weights_.data(),
          .params = reinterpret_cast<const float*>(params_.data()),
          .shift = bytes(shift_),
          .wkv = bytes(wkv_),
          .exponents = exponents_.as<int8_t>(),
          .elapsed = elapsed_.as<int32_t>(),
          .half_state = options_.half_state,
          .state_scale = kHalfStateScale,
          .slot = ids,
          .token = ids + 1,
          .logits = logits_.f32(),
          .exchange = bytes(exchange_),
          .skip = options_.skip,
          .stream_value = options_.stream_value > 0,
          .nap = options_.nap,
          .slots = options_.ring,
          .flight = options_.flight,
          .stamps = nullptr};
}

decode::PrefillCall DecodeModel::prefill_call() const {
  const auto bytes = [](const TensorView& v) { return static_cast<std::byte*>(v.data); };
  return {.weights = weights_.data(),
          .plain = plain_.data(),
          .params = reinterpret_cast<const float*>(params_.data()),
          .shift = bytes(shift_),
          .wkv = bytes(wkv_),
          .exponents = exponents_.as<int8_t>(),
          .elapsed = elapsed_.as<int32_t>(),
          .half_state = options_.half_state,
          .state_scale = kHalfStateScale};
}

void DecodeModel::check(int64_t slot, int32_t token) const {
  RWKV_CHECK(slot >= 0 && slot < options_.slots, ConfigError, "decoding: slot ", slot, " of ",
             options_.slots);
  RWKV_CHECK(token >= 0 && token < layout_.shape.vocab, ConfigError, "decoding: token id ", token,
             " is outside of the model's vocabulary, 0 to ", layout_.shape.vocab - 1);
}

void DecodeModel::step(int64_t slot, int32_t token) {
  check(slot, token);
  // The last copy from the pinned buffer may be on its way still.
  ctx_.synchronize("ids of a step");
  const auto ids = reinterpret_cast<int32_t*>(host_ids_.data());
  ids[0] = static_cast<int32_t>(slot);
  ids[1] = token;
  copy(ctx_, ids_, TensorView(ids, ids_.spec));
  step_again();
}

void DecodeModel::step_again() {
  decode::step(ctx_, layout_, options_.dtype, call());
}

void DecodeModel::send_batch(int64_t bucket, std::span<const int64_t> slots,
                             std::span<const int32_t> tokens) {
  ctx_.synchronize("ids of a batch");
  const auto ids = reinterpret_cast<int32_t*>(host_batch_.data());
  const auto rows = static_cast<size_t>(bucket);
  for (size_t i = 0; i < rows; ++i) {
    ids[i] = static_cast<int32_t>(i < slots.size() ? slots[i] : options_.slots);
    ids[rows + i] = i < tokens.size() ? tokens[i] : 0;
  }
  const TensorSpec spec({2, bucket}, DType::kI32);
  copy(ctx_, TensorView(batch_ids_.data, spec, Device::kCuda), TensorView(ids, spec));
}

decode::BatchCall DecodeModel::batch_call(int64_t bucket, const decode::BatchPlans& plans) const {
  const auto bytes = [](const TensorView& v) { return static_cast<std::byte*>(v.data); };
  return {.weights = weights_.data(),
          .plain = plain_.data(),
          .params = reinterpret_cast<const float*>(params_.data()),
          .shift = bytes(shift_),
          .wkv = bytes(wkv_),
          .exponents = exponents_.as<int8_t>(),
          .elapsed = elapsed_.as<int32_t>(),
          .half_state = options_.half_state,
          .state_scale = kHalfStateScale,
          .vendor = options_.vendor,
          .plans = plans,
          .rows = static_cast<int>(bucket),
          .all_slots = static_cast<int>(elapsed_.numel()),
          .slots = batch_ids_.as<int32_t>(),
          .tokens = batch_ids_.as<int32_t>() + bucket,
          .logits = all_logits_.f32(),
          .work = bytes(batch_work_)};
}

void DecodeModel::queue_batch(int64_t bucket, const decode::BatchPlans& plans,
                              const std::function<void(const char*)>* mark) {
  decode::BatchCall call = batch_call(bucket, plans);
  call.mark = mark;
  decode::batch_step(ctx_, layout_, plain_layout_, options_.dtype, call, events_);
}

void DecodeModel::choose_plans(int64_t bucket, Batch& batch) {
  const int rows = static_cast<int>(bucket), processors = decode::multiprocessors(ctx_);
  std::array<std::vector<decode::ProductPlan>, decode::kBatchProducts> plans;
  for (int kind = 0; kind < decode::kBatchProducts; ++kind) {
    auto& of = plans[static_cast<size_t>(kind)];
    of = decode::batch_plans(layout_, plain_layout_, kind, rows, processors);
    of.resize(std::min(of.size(), static_cast<size_t>(std::max(1, options_.plans_tried))));
    batch.plans[static_cast<size_t>(kind)] = of.front();
  }
  // A first step on the state that nobody has: cuBLASLt's algorithms are tried out, and the
  // products have something to work on.
  measure_gemm_algorithms(ctx_, true);
  queue_batch(bucket, batch.plans);
  measure_gemm_algorithms(ctx_, false);
  ctx_.synchronize("first batch of a size");
  // The last first: the products of kInProducts are timed with those of kUp.
  for (int kind = decode::kBatchProducts; kind-- > 0;) {
    const bool beside = kind == decode::kDown, low = beside || kind == decode::kUp;
    if (options_.vendor ? !low : beside) continue;
    double least = 0;
    for (const decode::ProductPlan& plan : plans[static_cast<size_t>(kind)]) {
      decode::BatchPlans tried = batch.plans;
      tried[static_cast<size_t>(kind)] = plan;
      const decode::BatchCall call = batch_call(bucket, tried);
      const LaunchGraph graph(ctx_, [&] {
        decode::batch_products(ctx_, layout_, plain_layout_, options_.dtype, call, kind);
      });
      graph.launch(ctx_);
      const Event begin(backend::cuda_event_create()), end(backend::cuda_event_create());
      backend::cuda_event_record(begin.get(), ctx_.stream());
      graph.launch(ctx_);
      backend::cuda_event_record(end.get(), ctx_.stream());
      const double seconds = backend::cuda_event_seconds(begin.get(), end.get());
      batch.times.push_back({kind, plan, seconds});
      // Shared loads take less power, which is what limits long runs of large batches.
      const double cost = plan.pair > 1 ? kSharedCost * seconds : seconds;
      if (least > 0 && cost >= least) continue;
      least = cost;
      batch.plans[static_cast<size_t>(kind)] = plan;
    }
  }
}

const DecodeModel::Batch& DecodeModel::batch_of(int64_t bucket) {
  Batch& batch = batches_[bucket];
  if (!batch.graph) {
    send_batch(bucket, {}, {});
    choose_plans(bucket, batch);
    batch.graph = LaunchGraph(ctx_, [&] { queue_batch(bucket, batch.plans); });
  }
  return batch;
}

void DecodeModel::step_batch(std::span<const int64_t> slots, std::span<const int32_t> tokens) {
  RWKV_CHECK(slots.size() == tokens.size() && !slots.empty(), ShapeError,
             "decoding of a batch: ", slots.size(), " slots and ", tokens.size(), " tokens");
  for (size_t i = 0; i < slots.size(); ++i) check(slots[i], tokens[i]);
  const auto fits = std::ranges::lower_bound(options_.buckets, std::ssize(slots));
  RWKV_CHECK(fits != options_.buckets.end(), ConfigError, "decoding of a batch: ", slots.size(),
             " sequences for buckets of up to ",
             options_.buckets.empty() ? 0 : options_.buckets.back());
  const LaunchGraph& graph = batch_of(*fits).graph;
  send_batch(*fits, slots, tokens);
  graph.launch(ctx_);
  batch_logits_ =
      TensorView(all_logits_.data, TensorSpec({*fits, layout_.shape.vocab}), Device::kCuda);
}

void DecodeModel::batch_again(int64_t bucket) {
  batch_of(bucket).graph.launch(ctx_);
}

std::vector<std::pair<std::string, double>> DecodeModel::batch_stages(int64_t bucket) {
  const Batch& batch = batch_of(bucket);
  return time_stages(ctx_, [&](const StageMark& mark) { queue_batch(bucket, batch.plans, &mark); });
}

double DecodeModel::zero_share() {
  const auto hidden = decode::read_hidden(ctx_, layout_, exchange_.data);
  const auto zeros = std::ranges::count(hidden, 0.0f);
  return static_cast<double>(zeros) / static_cast<double>(hidden.size());
}

std::vector<int64_t> DecodeModel::stamps() {
  std::vector<int64_t> host(
      static_cast<size_t>(layout_.blocks * (layout_.shape.layers + 1) * decode::kStamps));
  const TensorSpec spec({static_cast<int64_t>(host.size())}, DType::kI64);
  const Arena arena(Device::kCuda, align_up(spec.bytes()), "stamps");
  decode::StepCall c = call();
  const TensorView on_device = arena.at(0, spec);
  fill_zero(ctx_, on_device);
  c.stamps = on_device.as<int64_t>();
  decode::step(ctx_, layout_, options_.dtype, c);
  copy(ctx_, TensorView(host.data(), spec), on_device);
  ctx_.synchronize("stamps");
  return host;
}

}  // namespace rwkv
