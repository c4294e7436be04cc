#include "inference/decode_runner.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "inference/decode_prefill.h"
#include "inference/device_sampler.h"
#include "inference/runner_checks.h"
#include "kernels/core/bf16.h"
#include "kernels/core/error.h"
#include "kernels/core/half.h"
#include "kernels/core/memory.h"

namespace rwkv {
namespace {

float read(DType type, const std::byte* from) {
  if (type == DType::kF32) {
    float x = 0;
    std::memcpy(&x, from, sizeof x);
    return x;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, from, sizeof bits);
  return type == DType::kF16 ? to_float(F16{bits}) : to_float(BF16{bits});
}
void write(DType type, std::byte* to, float x) {
  const uint16_t bits = type == DType::kF16 ? to_half(x).bits : to_bf16(x).bits;
  if (type == DType::kF32)
    std::memcpy(to, &x, sizeof x);
  else
    std::memcpy(to, &bits, sizeof bits);
}

/// DecodeRunnerOptions::least_parallel.
constexpr int64_t kLeastParallel = 4, kLeastForEngine = 64;
/// Prompts in a call: each has a state in f32 there.
constexpr int64_t kMostPrompts = 32;

class DecodeRunner : public SequenceRunner {
 public:
  DecodeRunner(DecodeModel& model, const ModelConfig& config, Engine* engine,
               const DecodeRunnerOptions& options)
      : model_(model),
        config_(config),
        engine_(engine),
        options_(options),
        checks_(model.options().slots, config.vocab_size) {
    const int64_t n = options_.prefill_tokens;
    RWKV_ASSERT(config_.vocab_size == model_.layout().shape.vocab, "decode runner: another model");
    if (model_.options().prefill) {
      engine_ = nullptr;
      const int64_t shared = options_.shared_rows;
      const int64_t prompts = std::clamp<int64_t>(shared / decode::kPromptRows, 1,
                                                  std::min(kMostPrompts, model_.options().slots));
      prefill_.emplace(model_,
                       PrefillOptions{.tokens = n, .batch = prompts, .rows = std::max(n, shared)});
    } else {
      RWKV_CHECK(n >= 1 && std::has_single_bit(static_cast<uint64_t>(n)), ConfigError,
                 "decode runner: prefill_tokens is ", n, ", expected a power of two");
    }
    if (options_.least_parallel == 0)
      options_.least_parallel = !prefill_                       ? kLeastForEngine
                                : prefill_->options().batch > 1 ? 1
                                                                : kLeastParallel;
    if (engine_ != nullptr) {
      RWKV_CHECK(engine_->options().prefill_tokens >= n, ConfigError,
                 "decode runner: the engine's prefill_tokens is ",
                 engine_->options().prefill_tokens, ", expected at least ", n);
      state_.emplace(engine_->new_state(1));
      RWKV_CHECK(state_->device() == Device::kCuda &&
                     (*state_)[1].spec.dtype == model_.wkv_of(0).spec.dtype,
                 ConfigError, "decode runner: the engine's WKV states are ",
                 dtype_name((*state_)[1].spec.dtype), " on ", device_name(state_->device()),
                 ", expected ", dtype_name(model_.wkv_of(0).spec.dtype), " on cuda");
    }
    for (const auto& [name, view] : parts(0)) {
      const bool half = name == "wkv_states" && view.spec.dtype == DType::kF16;
      const int64_t size = config_.head_size;
      const TensorSpec spec =
          name == "wkv_states"
              ? TensorSpec({config_.n_layer, config_.n_embd / size, size, size}, view.spec.dtype)
              : view.spec;
      RWKV_ASSERT(spec.bytes() == view.bytes(), "decode runner: states of another size");
      layout_.push_back({name, spec, state_bytes_, half ? kHalfStateScale : 1});
      state_bytes_ += view.bytes();
    }
    const int64_t rows = decode_batch();
    logits_ =
        HostBuffer(Device::kCuda, static_cast<size_t>(rows * config_.vocab_size) * sizeof(float));
    if (DeviceSampler::takes(config_.vocab_size))
      sampler_.emplace(model_.context(), slots(), config_.vocab_size);
  }

  const ModelConfig& config() const override { return config_; }
  int64_t slots() const override { return model_.options().slots; }
  int64_t decode_batch() const override {
    return model_.options().buckets.empty() ? 1 : model_.options().buckets.back();
  }
  int64_t prefill_piece(int64_t left) const override {
    RWKV_ASSERT(left >= 1, "prefill_piece of ", left);
    if (prefill_) return prefill_->piece(left);
    return std::min(options_.prefill_tokens,
                    static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(left))));
  }
  PrefillGroup prefill_group(int64_t n) const override {
    if (!prefill_ || n < options_.least_parallel) return {-n, 1};
    const int64_t rows = prefill_->padded(n);
    return {rows, std::clamp<int64_t>(options_.shared_rows / rows, 1, prefill_->options().batch)};
  }
  bool exact() const override {
    const DecodeOptions& o = model_.options();
    return o.buckets.empty() || (options_.exact && (!o.vendor || o.buckets.size() == 1));
  }
  size_t pool_bytes() const override { return model_.state_bytes() * static_cast<size_t>(slots()); }
  size_t workspace_bytes() const override {
    return logits_.bytes() + (prefill_ ? prefill_->work_bytes() : 0) +
           (engine_ != nullptr ? engine_->plan_bytes() : 0) + (sampler_ ? sampler_->bytes() : 0);
  }

  void reset(int64_t slot) override {
    checks_.slot(slot, "reset");
    model_.reset(slot);
  }
  void copy(int64_t to, int64_t from) override {
    checks_.slot(to, "copy");
    checks_.slot(from, "copy");
    if (to != from) model_.copy_state(to, from);
  }

  std::span<const StateTensor> layout() const override { return layout_; }
  size_t state_bytes() const override { return state_bytes_; }
  void save(int64_t slot, std::span<std::byte> to) override {
    checks_.slot(slot, "save");
    checks_.bytes(to.size(), state_bytes_, "save");
    size_t i = 0;
    for (const auto& [name, view] : parts(slot)) {
      rwkv::copy(model_.context(), TensorView(to.data() + layout_[i].offset, view.spec), view);
      ++i;
    }
  }
  void load(int64_t slot, std::span<const std::byte> from) override {
    checks_.slot(slot, "load");
    checks_.bytes(from.size(), state_bytes_, "load");
    size_t i = 0;
    for (const auto& [name, view] : parts(slot)) {
      // Views do not know constness; the copy only reads.
      rwkv::copy(model_.context(), view,
                 TensorView(const_cast<std::byte*>(from.data()) + layout_[i].offset, view.spec));
      ++i;
    }
    model_.context().synchronize("loading a state");
  }

  TensorView prefill(int64_t slot, std::span<const int32_t> ids) override {
    checks_.slot(slot, "prefill");
    checks_.ids(ids, "prefill");
    const auto n = std::ssize(ids);
    RWKV_CHECK(n >= 1 && prefill_piece(n) == n, ConfigError, "prefill: ", n,
               " ids in one piece, expected ", n < 1 ? 1 : prefill_piece(n), "; ask prefill_piece");
    if (prefill_ && n >= options_.least_parallel) {
      side_by_side({&slot, 1}, {&ids, 1});
      return fetch(prefill_->logits(), 1);
    }
    if (engine_ == nullptr || n < options_.least_parallel) {
      for (const int32_t id : ids) model_.step(slot, id);
      return fetch(model_.logits(), 1);
    }
    exchange(slot, true);
    const TensorView logits = engine_->prefill(*state_, ids);
    exchange(slot, false);
    return logits;
  }

  TensorView prefill_batch(std::span<const int64_t> slots,
                           std::span<const std::span<const int32_t>> ids) override {
    if (!one_call(slots, ids)) return SequenceRunner::prefill_batch(slots, ids);
    side_by_side(slots, ids);
    return fetch(prefill_->logits(), std::ssize(slots));
  }
  void start_prefill_draws(std::span<const int64_t> slots,
                           std::span<const std::span<const int32_t>> ids,
                           std::span<const DrawRequest> requests) override {
    drawn_on_host_ = !sampler_ || !one_call(slots, ids);
    if (drawn_on_host_) return SequenceRunner::start_prefill_draws(slots, ids, requests);
    RWKV_CHECK(requests.size() == slots.size(), ShapeError, "draws: ", requests.size(),
               " requests for ", slots.size(), " prompts");
    side_by_side(slots, ids);
    float* const logits = prefill_->logits().f32();
    pieces_ = slots.size();
    places_.clear();
    for (size_t i = 0; i < slots.size(); ++i) {
      if (requests[i].sampler == nullptr) continue;
      const size_t first = i;
      for (; i < slots.size() && requests[i].sampler != nullptr; ++i) places_.push_back(i);
      sampler_->queue(slots.subspan(first, i - first), requests.subspan(first, i - first),
                      logits + first * static_cast<size_t>(config_.vocab_size));
    }
  }

  TensorView decode(std::span<const int64_t> slots, std::span<const int32_t> ids) override {
    const size_t all = slots.size(), vocab = static_cast<size_t>(config_.vocab_size);
    if (all * vocab * sizeof(float) > logits_.bytes())
      logits_ = HostBuffer(Device::kCuda, all * vocab * sizeof(float));
    steps(slots, ids, [&](size_t at, size_t n, const TensorView& from) {
      const TensorSpec spec({static_cast<int64_t>(n * vocab)});
      copy_later(model_.context(),
                 TensorView(reinterpret_cast<float*>(logits_.data()) + at * vocab, spec),
                 TensorView(from.data, spec, Device::kCuda));
    });
    model_.context().synchronize("logits");
    return {logits_.data(), {static_cast<int64_t>(all), config_.vocab_size}};
  }

  void start_draws(std::span<const int64_t> slots, std::span<const int32_t> ids,
                   std::span<const DrawRequest> requests) override {
    pieces_ = 0;
    drawn_on_host_ = !sampler_;
    if (drawn_on_host_) return SequenceRunner::start_draws(slots, ids, requests);
    RWKV_CHECK(requests.size() == slots.size(), ShapeError, "draws: ", requests.size(),
               " requests for ", slots.size(), " sequences");
    steps(slots, ids, [&](size_t at, size_t n, const TensorView& from) {
      sampler_->queue(slots.subspan(at, n), requests.subspan(at, n), from.f32());
    });
  }
  std::span<Drawn> finish_draws() override {
    if (drawn_on_host_) return SequenceRunner::finish_draws();
    const std::span<Drawn> drawn = sampler_->finish();
    if (pieces_ == 0) return drawn;
    all_drawn_.assign(pieces_, {});
    for (size_t i = 0; i < drawn.size(); ++i) all_drawn_[places_[i]] = std::move(drawn[i]);
    return all_drawn_;
  }
  bool draws_aside() const override { return sampler_.has_value(); }

 private:
  /// Whether one call of prefill_ takes these pieces. Checks them if so. Throws ShapeError,
  /// ConfigError.
  bool one_call(std::span<const int64_t> slots, std::span<const std::span<const int32_t>> ids) {
    RWKV_CHECK(!slots.empty() && slots.size() == ids.size(), ShapeError, "prefill: ", slots.size(),
               " slots and pieces of ", ids.size(),
               " prompts, expected the same number of at least 1");
    const PrefillGroup group = prefill_group(std::ssize(ids[0]));
    if (!prefill_ || group.group < 0 || std::ssize(slots) > group.batch ||
        std::ranges::any_of(
            ids, [&](auto i) { return prefill_group(std::ssize(i)).group != group.group; }))
      return false;
    checks_.slots(slots, "prefill");
    for (const auto& piece : ids) {
      checks_.ids(piece, "prefill");
      const auto n = std::ssize(piece);
      RWKV_CHECK(n >= 1 && prefill_piece(n) == n, ConfigError, "prefill: ", n,
                 " ids in one piece, expected ", n < 1 ? 1 : prefill_piece(n),
                 "; ask prefill_piece");
    }
    return true;
  }
  /// Pieces of one group. Exact: a call of the group's size, whoever is there.
  void side_by_side(std::span<const int64_t> slots, std::span<const std::span<const int32_t>> ids) {
    const int64_t most = prefill_group(std::ssize(ids[0])).batch;
    const auto some = static_cast<int64_t>(std::bit_ceil(slots.size()));
    prefill_->run(slots, ids, options_.exact ? most : std::min(some, most));
  }
  /// Queues the steps; then(at, n, logits) queues what is to be done with those of n sequences from
  /// the call's `at`-th on, which the next step replaces.
  template <class Then>
  void steps(std::span<const int64_t> slots, std::span<const int32_t> ids, const Then& then) {
    checks_.decode(slots, ids);
    const auto& buckets = model_.options().buckets;
    const size_t all = slots.size();
    const bool alone = buckets.empty() || (all == 1 && !options_.exact);
    for (size_t at = 0; at < all;) {
      const size_t n = alone ? 1 : std::min(all - at, static_cast<size_t>(buckets.back()));
      if (alone)
        model_.step(slots[at], ids[at]);
      else
        model_.step_batch(slots.subspan(at, n), ids.subspan(at, n));
      then(at, n, alone ? model_.logits() : model_.batch_logits());
      at += n;
    }
  }
  std::vector<std::pair<std::string, TensorView>> parts(int64_t slot) const {
    const auto alone = [](TensorView v) {
      v.spec = TensorSpec({1, v.numel()}, v.spec.dtype);
      return v;
    };
    return {{"shift_states", alone(model_.shift_of(slot))},
            {"wkv_states", alone(model_.wkv_of(slot))},
            {"wkv_exponents", alone(model_.exponents_of(slot))},
            {"elapsed", alone(model_.elapsed_of(slot))}};
  }
  TensorView fetch(const TensorView& logits, int64_t rows) {
    const TensorSpec spec({rows, config_.vocab_size});
    if (spec.bytes() > logits_.bytes()) logits_ = HostBuffer(Device::kCuda, spec.bytes());
    const TensorView host(logits_.data(), spec);
    rwkv::copy(model_.context(), host, TensorView(logits.data, spec, Device::kCuda));
    return host;
  }

  /// A slot's state to the engine's (`out`), or back. WKV states go from device to device, layer by
  /// layer; the shift states change their type on the way, in host memory.
  void exchange(int64_t slot, bool out) {
    Context& ctx = model_.context();
    const TensorView shift = model_.shift_of(slot), wkv = model_.wkv_of(slot),
                     exponents = model_.exponents_of(slot), elapsed = model_.elapsed_of(slot);
    const int64_t layers = shift.dim(0), width = shift.dim(2);
    // Per layer: shift, WKV, exponents of a binary16 WKV state, shift.
    const bool half = wkv.spec.dtype == DType::kF16;
    const size_t stride = half ? 4 : 3;
    const DType ours = shift.spec.dtype, theirs = (*state_)[0].spec.dtype;
    std::vector<std::byte> here(shift.bytes());
    std::vector<std::byte> there(static_cast<size_t>(width) * dtype_bytes(theirs));
    const TensorView here_view(here.data(), shift.spec);
    const auto move = [&](const TensorView& a, const TensorView& b) {
      TensorView to = out ? b : a, from = out ? a : b;
      to.spec = from.spec = TensorSpec({a.numel()}, a.spec.dtype);
      rwkv::copy(ctx, to, from);
    };
    // The two contexts have streams of their own.
    engine_->context().synchronize("states of prefill");
    ctx.synchronize("states of prefill");
    if (out) rwkv::copy(ctx, here_view, shift);
    for (int64_t l = 0; l < layers; ++l) {
      const size_t first = stride * static_cast<size_t>(l);
      move(wkv.slice(l, l + 1), (*state_)[first + 1]);
      if (half) move(exponents.slice(l, l + 1), (*state_)[first + 2]);
      for (int64_t i = 0; i < 2; ++i) {
        const TensorView far = (*state_)[first + (i == 0 ? 0 : stride - 1)];
        const TensorView near(there.data(), far.spec);
        if (!out) rwkv::copy(ctx, near, far);
        const auto row = static_cast<size_t>((2 * l + i) * width);
        for (size_t c = 0; c < static_cast<size_t>(width); ++c) {
          std::byte* const a = here.data() + (row + c) * dtype_bytes(ours);
          std::byte* const b = there.data() + c * dtype_bytes(theirs);
          if (out)
            write(theirs, b, read(ours, a));
          else
            write(ours, a, read(theirs, b));
        }
        if (out) rwkv::copy(ctx, far, near);
      }
    }
    if (!out) rwkv::copy(ctx, shift, here_view);
    if (state_->specs().back().name == "elapsed")
      move(elapsed, (*state_)[state_->specs().size() - 1]);
    ctx.synchronize("states of prefill");
  }

  DecodeModel& model_;
  ModelConfig config_;
  Engine* engine_;
  DecodeRunnerOptions options_;
  std::optional<DecodePrefill> prefill_;
  std::optional<RnnState> state_;
  RunnerChecks checks_;
  std::vector<StateTensor> layout_;
  size_t state_bytes_ = 0;
  HostBuffer logits_;
  std::optional<DeviceSampler> sampler_;
  // Of draws that have been started.
  bool drawn_on_host_ = false;
  size_t pieces_ = 0;           ///< of prompts; 0: a step
  std::vector<size_t> places_;  ///< pieces that something is drawn for
  std::vector<Drawn> all_drawn_;
};

}  // namespace

std::unique_ptr<SequenceRunner> make_decode_runner(DecodeModel& model, const ModelConfig& config,
                                                   Engine* engine,
                                                   const DecodeRunnerOptions& options) {
  return std::make_unique<DecodeRunner>(model, config, engine, options);
}

EngineOptions decode_engine_options(const DecodeModel& model, const DecodeRunnerOptions& options) {
  EngineOptions o;
  o.wkv = model.options().half_state ? "fp16-dithered" : "auto";
  o.prefill_tokens = options.prefill_tokens;
  o.max_plans =
      std::max<int64_t>(o.max_plans, std::bit_width(static_cast<uint64_t>(o.prefill_tokens)) + 1);
  o.device = Device::kCuda;
  o.dtype = model.options().dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
  return o;
}

}  // namespace rwkv
