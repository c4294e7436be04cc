#pragma once
// A runner without a model: a state is a hash of the ids that it has seen, logits follow from it.
// It notes its calls and can be broken.

#include <atomic>
#include <chrono>
#include <cstring>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#include "inference/sequence_runner.h"
#include "kernels/core/rng.h"

namespace rwkv::test {

class FakeRunner : public SequenceRunner {
 public:
  static constexpr int32_t kPoison = 200;  ///< logits after this id are not numbers
  struct Call {
    bool decode;
    int64_t tokens;
    int64_t sequences = 1;
  };

  /// Pieces whose lengths are equal after rounding up to a multiple of four go together, `batch` of
  /// them.
  FakeRunner(int64_t slots, int64_t piece, int64_t batch = 1)
      : piece_(piece), batch_(batch), states_(static_cast<size_t>(slots)) {
    config_.vocab_size = 257;
    layout_ = {{"hash", TensorSpec({1, 2}), 0}};
  }
  void break_down() { broken_ = true; }
  std::vector<Call> calls() const {
    const std::lock_guard lock(mutex_);
    return calls_;
  }

  const ModelConfig& config() const override { return config_; }
  int64_t slots() const override { return std::ssize(states_); }
  int64_t decode_batch() const override { return 4; }
  int64_t prefill_piece(int64_t left) const override { return std::min(left, piece_); }
  PrefillGroup prefill_group(int64_t n) const override { return {(n + 3) / 4, batch_}; }
  bool exact() const override { return true; }
  size_t pool_bytes() const override { return states_.size() * sizeof(uint64_t); }
  size_t workspace_bytes() const override { return 0; }
  void reset(int64_t slot) override { state(slot) = 1; }
  void copy(int64_t to, int64_t from) override { state(to) = state(from); }
  std::span<const StateTensor> layout() const override { return layout_; }
  size_t state_bytes() const override { return sizeof(uint64_t); }
  void save(int64_t slot, std::span<std::byte> to) override {
    std::memcpy(to.data(), &state(slot), sizeof(uint64_t));
  }
  void load(int64_t slot, std::span<const std::byte> from) override {
    std::memcpy(&state(slot), from.data(), sizeof(uint64_t));
  }
  TensorView prefill(int64_t slot, std::span<const int32_t> ids) override {
    note(false, std::ssize(ids));
    logits_.resize(257);
    for (const int32_t id : ids) feed(slot, id);
    give(slot, ids.back(), 0);
    return {logits_.data(), {1, 257}};
  }
  TensorView prefill_batch(std::span<const int64_t> slots,
                           std::span<const std::span<const int32_t>> ids) override {
    int64_t tokens = 0;
    for (const auto& piece : ids) {
      RWKV_CHECK(prefill_group(std::ssize(piece)).group == prefill_group(std::ssize(ids[0])).group,
                 ConfigError, "pieces that do not go together");
      RWKV_CHECK(std::ssize(piece) <= piece_, ConfigError, "a piece too long");
      tokens += std::ssize(piece);
    }
    RWKV_CHECK(std::ssize(slots) <= batch_, ConfigError, "too many pieces");
    note(false, tokens, std::ssize(slots));
    logits_.resize(slots.size() * 257);
    for (size_t i = 0; i < slots.size(); ++i) {
      for (const int32_t id : ids[i]) feed(slots[i], id);
      give(slots[i], ids[i].back(), i);
    }
    return {logits_.data(), {std::ssize(slots), 257}};
  }
  TensorView decode(std::span<const int64_t> slots, std::span<const int32_t> ids) override {
    note(true, std::ssize(ids), std::ssize(slots));
    logits_.resize(slots.size() * 257);
    for (size_t i = 0; i < slots.size(); ++i) {
      feed(slots[i], ids[i]);
      give(slots[i], ids[i], i);
    }
    return {logits_.data(), {std::ssize(slots), 257}};
  }

 private:
  uint64_t& state(int64_t slot) { return states_.at(static_cast<size_t>(slot)); }
  void feed(int64_t slot, int32_t id) {
    state(slot) = Rng(state(slot), hash_name("fake")).u64(static_cast<uint64_t>(id));
  }
  /// Never id 0, so that nothing ends by itself.
  void give(int64_t slot, int32_t id, size_t row) {
    float* x = logits_.data() + row * 257;
    std::fill_n(x, 257, 0.0f);
    x[0] = -1000;
    x[kPoison] = -1000;
    x[1 + state(slot) % 150] = 20;
    if (id == kPoison) x[5] = std::numeric_limits<float>::quiet_NaN();
  }
  void note(bool decode, int64_t tokens, int64_t sequences = 1) {
    RWKV_CHECK(!broken_, DeviceError, "the fake runner is broken");
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    const std::lock_guard lock(mutex_);
    calls_.push_back({decode, tokens, sequences});
  }

  ModelConfig config_;
  int64_t piece_, batch_;
  std::vector<uint64_t> states_;
  std::vector<StateTensor> layout_;
  std::vector<float> logits_;
  std::atomic<bool> broken_ = false;
  mutable std::mutex mutex_;
  std::vector<Call> calls_;
};

}  // namespace rwkv::test
