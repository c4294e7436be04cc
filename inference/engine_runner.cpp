#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include "inference/runner_checks.h"
#include "inference/sequence_runner.h"
#include "kernels/core/memory.h"

namespace rwkv {
namespace {

constexpr int64_t kCudaBucket = 32;
constexpr int64_t kCpuPrefill = 256, kCudaPrefill = 2048;

std::vector<int64_t> buckets_of(const EngineRunnerOptions& o, Device device) {
  std::vector<int64_t> buckets = o.buckets;
  if (buckets.empty())
    buckets =
        device == Device::kCpu ? std::vector<int64_t>{1, 2, 4} : std::vector<int64_t>{kCudaBucket};
  for (size_t i = 0; i < buckets.size(); ++i)
    RWKV_CHECK(buckets[i] >= 1 && (i == 0 || buckets[i] > buckets[i - 1]), ConfigError,
               "sequence runner: bucket ", buckets[i],
               ", expected numbers of at least 1 in ascending order");
  return buckets;
}

int64_t prefill_of(const EngineRunnerOptions& o, Device device) {
  const int64_t n = o.prefill_tokens != 0     ? o.prefill_tokens
                    : device == Device::kCuda ? kCudaPrefill
                                              : kCpuPrefill;
  RWKV_CHECK(n >= 1 && std::has_single_bit(static_cast<uint64_t>(n)), ConfigError,
             "sequence runner: prefill_tokens is ", n, ", expected a power of two");
  return n;
}

/// Exact on the CPU: buckets that few_rows of kernels/core/gemm_cpu.cpp serves.
constexpr int64_t kCpuExactRows = 4;

bool is_exact(std::span<const int64_t> buckets, Device device) {
  return device == Device::kCpu ? buckets.back() <= kCpuExactRows : buckets.size() == 1;
}

/// Prompts that share a call for pieces of n tokens: a bucket, with no more tokens in all than the
/// longest piece has. Only where results may depend on neighbours: products of more than
/// kCpuExactRows rows take other sums. On a GPU there would be too many plans.
int64_t prompts_together(std::span<const int64_t> buckets, Device device, int64_t longest,
                         int64_t n) {
  int64_t together = 1;
  if (device != Device::kCpu || is_exact(buckets, device)) return together;
  for (const int64_t b : buckets)
    if (b * n <= longest) together = b;
  return together;
}

class EngineRunner : public SequenceRunner {
 public:
  EngineRunner(Engine& engine, const EngineRunnerOptions& o)
      : engine_(engine),
        slots_(o.slots),
        buckets_(buckets_of(o, engine.options().device)),
        prefill_tokens_(prefill_of(o, engine.options().device)),
        fresh_(engine.new_state(1)),
        pool_(make_pool(engine, o.slots)),
        checks_(o.slots, engine.model().config().vocab_size) {
    RWKV_CHECK(engine.options().prefill_tokens >= prefill_tokens_, ConfigError,
               "sequence runner: the engine's prefill_tokens is ", engine.options().prefill_tokens,
               ", expected at least ", prefill_tokens_, "; use runner_engine_options");
    for (const auto& s : fresh_.specs()) {
      layout_.push_back({s.name, s.spec, state_bytes_, s.scale});
      state_bytes_ += s.spec.bytes();
    }
    batches_.emplace(1, engine.new_state(1));
    for (const int64_t b : buckets_)
      if (b != 1) batches_.emplace(b, engine.new_state(b));
  }

  const ModelConfig& config() const override { return engine_.model().config(); }
  int64_t slots() const override { return slots_; }
  int64_t decode_batch() const override { return buckets_.back(); }
  int64_t prefill_piece(int64_t left) const override {
    RWKV_ASSERT(left >= 1, "prefill_piece of ", left);
    return std::min(prefill_tokens_,
                    static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(left))));
  }
  /// Several pieces share a pass over the weights where sums may be taken in another order.
  PrefillGroup prefill_group(int64_t n) const override {
    return {n, prompts_together(buckets_, engine_.options().device, prefill_tokens_, n)};
  }
  bool exact() const override { return is_exact(buckets_, engine_.options().device); }
  size_t pool_bytes() const override { return pool_.bytes(); }
  size_t workspace_bytes() const override {
    size_t sum = engine_.plan_bytes() + logits_.size() * sizeof(float);
    for (const auto& [size, state] : batches_) sum += state.bytes();
    return sum;
  }

  void reset(int64_t slot) override {
    checks_.slot(slot, "reset");
    for (size_t i = 0; i < layout_.size(); ++i)
      rwkv::copy(engine_.context(), pool_row(i, slot), fresh_[i]);
  }
  void copy(int64_t to, int64_t from) override {
    checks_.slot(to, "copy");
    checks_.slot(from, "copy");
    if (to == from) return;
    for (size_t i = 0; i < layout_.size(); ++i)
      rwkv::copy(engine_.context(), pool_row(i, to), pool_row(i, from));
  }

  std::span<const StateTensor> layout() const override { return layout_; }
  size_t state_bytes() const override { return state_bytes_; }
  void save(int64_t slot, std::span<std::byte> to) override {
    checks_.slot(slot, "save");
    checks_.bytes(to.size(), state_bytes_, "save");
    for (size_t i = 0; i < layout_.size(); ++i)
      rwkv::copy(engine_.context(), TensorView(to.data() + layout_[i].offset, layout_[i].spec),
                 pool_row(i, slot));
  }
  void load(int64_t slot, std::span<const std::byte> from) override {
    checks_.slot(slot, "load");
    checks_.bytes(from.size(), state_bytes_, "load");
    for (size_t i = 0; i < layout_.size(); ++i)
      // Views do not know constness; the copy only reads.
      rwkv::copy(
          engine_.context(), pool_row(i, slot),
          TensorView(const_cast<std::byte*>(from.data()) + layout_[i].offset, layout_[i].spec));
    // On CUDA the caller's memory, not pinned, has been read when the copies return.
  }

  TensorView prefill(int64_t slot, std::span<const int32_t> ids) override {
    checks_.slot(slot, "prefill");
    checks_.ids(ids, "prefill");
    RWKV_CHECK(!ids.empty() && prefill_piece(std::ssize(ids)) == std::ssize(ids), ConfigError,
               "prefill: ", ids.size(), " ids in one piece, expected a power of two of at most ",
               prefill_tokens_, "; ask prefill_piece");
    RnnState& batch = batches_.at(1);
    move_rows(batch, 0, slot, true);
    const TensorView logits = engine_.prefill(batch, ids);
    move_rows(batch, 0, slot, false);
    return logits;
  }

  TensorView prefill_batch(std::span<const int64_t> slots,
                           std::span<const std::span<const int32_t>> ids) override {
    const int64_t n = ids.empty() ? 0 : std::ssize(ids[0]);
    const bool together = n > 0 && slots.size() == ids.size() && prefill_piece(n) == n &&
                          prefill_group(n).batch > 1 &&
                          std::ranges::all_of(ids, [&](auto i) { return std::ssize(i) == n; });
    if (!together) return SequenceRunner::prefill_batch(slots, ids);
    checks_.slots(slots, "prefill");
    for (const auto& piece : ids) checks_.ids(piece, "prefill");
    const auto vocab = static_cast<size_t>(config().vocab_size);
    logits_.resize(slots.size() * vocab);
    for (size_t at = 0; at < slots.size();) {
      // The largest batch that there are pieces for: padding would be work.
      const auto left = static_cast<int64_t>(slots.size() - at);
      int64_t batch = 1;
      for (const int64_t b : buckets_)
        if (b <= left && b <= prefill_group(n).batch) batch = b;
      RnnState& state = batches_.at(batch);
      ids_.clear();
      for (int64_t row = 0; row < batch; ++row) {
        const size_t i = at + static_cast<size_t>(row);
        move_rows(state, row, slots[i], true);
        ids_.insert(ids_.end(), ids[i].begin(), ids[i].end());
      }
      const TensorView out = engine_.prefill(state, ids_);
      std::memcpy(logits_.data() + at * vocab, out.f32(),
                  static_cast<size_t>(batch) * vocab * sizeof(float));
      for (int64_t row = 0; row < batch; ++row)
        move_rows(state, row, slots[at + static_cast<size_t>(row)], false);
      at += static_cast<size_t>(batch);
    }
    return {logits_.data(), {std::ssize(slots), config().vocab_size}};
  }

  TensorView decode(std::span<const int64_t> slots, std::span<const int32_t> ids) override {
    checks_.decode(slots, ids);
    const int64_t vocab = config().vocab_size;
    const size_t all = slots.size();
    logits_.resize(all * static_cast<size_t>(vocab));
    for (size_t at = 0; at < all;) {
      const size_t n = std::min(all - at, static_cast<size_t>(buckets_.back()));
      step(slots.subspan(at, n), ids.subspan(at, n),
           logits_.data() + at * static_cast<size_t>(vocab));
      at += n;
    }
    return {logits_.data(), {static_cast<int64_t>(all), vocab}};
  }

 private:
  static RnnState make_pool(Engine& engine, int64_t slots) {
    RWKV_CHECK(slots >= 1, ConfigError, "sequence runner: ", slots, " slots, expected at least 1");
    return engine.new_state(slots);
  }
  TensorView pool_row(size_t i, int64_t slot) const { return pool_[i].slice(slot, slot + 1); }
  void move_rows(RnnState& batch, int64_t row, int64_t slot, bool gather) {
    for (size_t i = 0; i < layout_.size(); ++i) {
      const TensorView there = batch[i].slice(row, row + 1), here = pool_row(i, slot);
      rwkv::copy(engine_.context(), gather ? there : here, gather ? here : there);
    }
  }

  /// One bucket. Rows behind the sequences go on with what an earlier call left there: nobody looks
  /// at what comes of it.
  void step(std::span<const int64_t> slots, std::span<const int32_t> ids, float* logits) {
    const auto n = std::ssize(slots);
    const int64_t bucket = *std::ranges::lower_bound(buckets_, n);
    RnnState& batch = batches_.at(bucket);
    for (int64_t row = 0; row < n; ++row)
      move_rows(batch, row, slots[static_cast<size_t>(row)], true);
    ids_.assign(ids.begin(), ids.end());
    ids_.resize(static_cast<size_t>(bucket), 0);
    const TensorView out = engine_.decode(batch, ids_);
    std::memcpy(logits, out.f32(), static_cast<size_t>(n * out.last()) * sizeof(float));
    for (int64_t row = 0; row < n; ++row)
      move_rows(batch, row, slots[static_cast<size_t>(row)], false);
  }

  Engine& engine_;
  int64_t slots_;
  std::vector<int64_t> buckets_;
  int64_t prefill_tokens_;
  RnnState fresh_, pool_;
  RunnerChecks checks_;
  std::map<int64_t, RnnState> batches_;
  std::vector<StateTensor> layout_;
  size_t state_bytes_ = 0;
  std::vector<int32_t> ids_;
  std::vector<float> logits_;
};

}  // namespace

std::unique_ptr<SequenceRunner> make_engine_runner(Engine& engine,
                                                   const EngineRunnerOptions& options) {
  return std::make_unique<EngineRunner>(engine, options);
}

EngineOptions runner_engine_options(EngineOptions engine, const EngineRunnerOptions& options) {
  const int64_t longest = prefill_of(options, engine.device);
  engine.prefill_tokens = std::max(engine.prefill_tokens, longest);
  const std::vector<int64_t> buckets = buckets_of(options, engine.device);
  int64_t plans = std::bit_width(static_cast<uint64_t>(longest)) + std::ssize(buckets) + 1;
  for (int64_t n = 1; n <= longest; n *= 2) {
    const int64_t most = prompts_together(buckets, engine.device, longest, n);
    plans += std::ranges::count_if(buckets, [&](int64_t b) { return b > 1 && b <= most; });
  }
  engine.max_plans = std::max<int64_t>(engine.max_plans, plans);
  return engine;
}

}  // namespace rwkv
