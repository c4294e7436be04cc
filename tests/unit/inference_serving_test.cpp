// What serving a model takes, and models without a file.

#include "inference/serving.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "inference/random_model.h"
#include "inference/warm_up.h"
#include "kernels/core/error.h"
#include "kernels/core/machine_memory.h"
#include "model/public_sizes.h"
#include "tests/unit/inference_fake_runner.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

TEST(PublicSizes, HaveTheParametersOfTheirNames) {
  for (const std::string_view size : public_model_sizes()) {
    const ModelConfig c = public_model_config(size);
    const double said = std::stod(std::string(size)) * 1e9;
    const auto found = static_cast<double>(count_parameters(c).used);
    // 0.1B has 0.19, half of it in the vocabulary.
    if (size != "0.1B") {
      EXPECT_LE(std::fabs(found - said) / said, 0.13) << size << ": " << found;
    }
    EXPECT_TRUE(decode_kernels_take(c)) << size;
  }
  EXPECT_EQ(count_parameters(public_model_config("0.1B")).used / 1000000, 191);
  EXPECT_THROW(public_model_config("8B"), ConfigError);
}

TEST(ServingSize, IsWhatIsAllocated) {
  const test::TestModel m = test::random_model(3);
  for (const DType weights : {DType::kF32, DType::kBF16}) {
    ServingOptions o;
    o.engine.weights = weights;
    o.runner.slots = 5;
    const ServingSize size = serving_size(m.model->config(), o);
    const auto serving = make_serving(*m.model, *m.weights, o);
    EXPECT_EQ(serving->runner().state_bytes(), size.state);
    // Arenas are aligned.
    EXPECT_LE(serving->runner().pool_bytes() - size.states, 4096U);
    EXPECT_GT(size.weights, static_cast<size_t>(m.model->params().numel()) * sizeof(float));
  }
}

/// The formulas of docs/serving.md.
TEST(ServingSize, FollowsTheFormulas) {
  for (const std::string_view name : public_model_sizes()) {
    const ModelConfig c = public_model_config(name);
    for (const DType type : {DType::kF16, DType::kF32})
      for (const bool half : {false, true}) {
        ServingOptions o{.decode_kernels = true, .weights = type, .half_state = half};
        o.runner.slots = 100;
        const ServingSize s = serving_size(c, o);
        const auto l = static_cast<double>(c.n_layer), d = static_cast<double>(c.n_embd),
                   f = static_cast<double>(c.dim_ffn), v = static_cast<double>(c.vocab_size),
                   r = static_cast<double>(c.rank_w + c.rank_a + c.rank_v + c.rank_g);
        const double w = type == DType::kF16 ? 2 : 4, state = half ? 2 : 4;
        double weights = w * (l * (4 * d * d + 2 * d * f + 2 * d * r) + 2 * v * d) + 76 * l * d;
        if (type == DType::kF16) weights += 2 * l * (d * f + d * r);
        const auto near = [&](size_t got, double want, double share) {
          EXPECT_LE(std::fabs(static_cast<double>(got) / want - 1), share)
              << name << ": " << got << ", by the formula " << want;
        };
        near(s.weights, weights, 0.01);  // low-rank widths are padded
        near(s.states, 101 * (l * (2 * d * w + 64 * d * state + d) + 4), 1e-9);
        near(s.logits, 4 * 100 * v, 1e-9);
        EXPECT_EQ(s.prefill > 0, type == DType::kF32);
        EXPECT_EQ(s.all(), s.weights + s.prefill + s.states + s.logits);
      }
  }
}

std::string refusal(const ServingSize& size, int64_t slots, const ServingRoom& room) {
  try {
    check_room(size, slots, room);
    return "";
  } catch (const DeviceError& e) {
    return e.what();
  }
}

TEST(ServingSize, SaysHowManySlotsFit) {
  // 1000 bytes of weights; 10 and 4 for a slot, and a state more.
  const ServingSize size{.weights = 1000, .state = 10, .states = 101 * 10, .logits = 400};
  const auto says = [&](size_t bytes) {
    return refusal(size, 100, {bytes, "GPU memory", "what is free on the GPU", ""});
  };
  EXPECT_EQ(says(size.all()), "");
  EXPECT_NE(says(size.all() - 1).find("About 99 slots fit"), std::string::npos);
  EXPECT_NE(says(1010 + 14).find("About 1 slots fit"), std::string::npos);
  EXPECT_NE(says(1010 + 13).find("Not even one slot"), std::string::npos);
}

TEST(ServingSize, ARefusalSaysWhoseTheLimitIs) {
  const ServingSize size{.weights = 4 << 20, .state = 10, .states = 1010, .logits = 400};
  const MachineMemory container{2 << 20, "/sys/fs/cgroup/memory.max"};
  const std::string text =
      refusal(size, 100, {container.available, "memory", container.words(), "raise that limit"});
  for (const char* part :
       {"takes more memory than there is: weights 4.0 MiB", "100 x ", "expected at most 2.0 MiB",
        "limit of this container or job leaves (/sys/fs/cgroup/memory.max)", "a smaller model",
        "or raise that limit"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
}

/// As for training; what is the model's already does not count twice.
TEST(ServingSize, RoomOnTheCpuIsWhatTheMachineOrItsContainerLeaves) {
  const MachineMemory machine = machine_memory();
  ASSERT_GT(machine.available, 0u);
  const ServingRoom room = serving_room(Device::kCpu, 0);
  // Others work on this machine meanwhile.
  const double other =
      std::fabs(static_cast<double>(room.bytes) - static_cast<double>(machine.available));
  EXPECT_LE(other, 0.5 * static_cast<double>(machine.available));
  EXPECT_EQ(room.words, machine.words());
  EXPECT_EQ(room.advice.empty(), machine.limit_file.empty());
  EXPECT_GE(serving_room(Device::kCpu, size_t{1} << 50).bytes, size_t{1} << 50);
}

TEST(Serving, MoreSlotsThanThereIsMemoryFor) {
  const test::TestModel m = test::random_model(3);
  ServingOptions o;
  o.runner.slots = int64_t{1} << 36;
  try {
    make_serving(*m.model, *m.weights, o);
    ADD_FAILURE() << "2^36 slots";
  } catch (const DeviceError& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("slots fit (--slots)"), std::string::npos) << text;
    EXPECT_NE(text.find(machine_memory().words()), std::string::npos) << text;
  }
}

TEST(Serving, WithoutAGpuTheDecodingKernelsSaySo) {
  const test::TestModel m = test::random_model(3, 2, 64, 100, 32);
  EXPECT_THROW(make_serving(*m.model, *m.weights, {.decode_kernels = true}), ConfigError);
}

/// Pads as the runner of the decoding kernels does: pieces to multiples of 16, calls to powers of
/// two or, if exact, to their one size. Notes the sizes it has had.
class PaddingRunner : public test::FakeRunner {
 public:
  using Sizes = std::set<std::pair<int64_t, int64_t>>;  ///< pieces, rows of each
  explicit PaddingRunner(bool exact) : FakeRunner(24, 64, 12), exact_(exact) {}
  bool exact() const override { return exact_; }
  PrefillGroup prefill_group(int64_t n) const override {
    const int64_t rows = (n + 15) / 16 * 16;
    return {rows, rows > 48 ? 1 : rows > 16 ? 4 : 12};
  }
  TensorView prefill_batch(std::span<const int64_t> slots,
                           std::span<const std::span<const int32_t>> ids) override {
    int64_t rows = 0, pieces = 1;
    for (const auto& piece : ids) rows = std::max(rows, prefill_group(std::ssize(piece)).group);
    const int64_t most = prefill_group(rows).batch;
    while (pieces < std::ssize(slots)) pieces *= 2;
    sizes_.emplace(exact_ ? most : std::min(pieces, most), rows);
    return FakeRunner::prefill_batch(slots, ids);
  }
  TensorView decode(std::span<const int64_t> slots, std::span<const int32_t> ids) override {
    steps_.insert(std::ssize(slots));
    return FakeRunner::decode(slots, ids);
  }
  void reset(int64_t slot) override {
    resets_.insert(slot);
    FakeRunner::reset(slot);
  }

  Sizes sizes_;
  std::set<int64_t> steps_, resets_;

 private:
  bool exact_;
};

/// After it no request, however many there are, comes with a size that is new.
TEST(WarmUp, UsesEverySizeThatRequestsCanHave) {
  const std::vector<int64_t> buckets = {8, 16, 24};
  for (const bool exact : {true, false}) {
    PaddingRunner runner(exact);
    warm_up(runner, buckets);
    const PaddingRunner::Sizes warm = runner.sizes_;
    EXPECT_EQ(warm.size(), exact ? 4U : 5U + 3U + 3U + 1U);
    EXPECT_EQ(runner.steps_,
              exact ? std::set<int64_t>({8, 16, 24}) : std::set<int64_t>({1, 8, 16, 24}));
    EXPECT_EQ(runner.resets_.size(), 24U);
    for (int64_t n = 1; n <= 64; ++n) {
      const std::vector<int32_t> ids(static_cast<size_t>(n), 1);
      std::vector<int64_t> slots;
      std::vector<std::span<const int32_t>> pieces;
      while (std::ssize(slots) < runner.prefill_group(n).batch) {
        slots.push_back(std::ssize(slots));
        pieces.emplace_back(ids);
        runner.prefill_batch(slots, pieces);
      }
    }
    EXPECT_EQ(runner.sizes_, warm);
  }
}

TEST(RandomModel, HasLogitsOfDeviationOne) {
  ModelConfig c = public_model_config("0.1B");
  c.n_layer = 3;
  c.n_embd = 128;
  c.dim_ffn = 0;
  c.vocab_size = 500;
  c.finish();
  const LoadedModel m = random_model(c, 1);
  Engine engine(*m.model, *m.weights);
  RnnState state = engine.new_state();
  const TensorView logits = engine.prefill(state, test::random_ids(1, 20, 500));
  double squares = 0;
  for (int64_t i = 0; i < 500; ++i) squares += std::pow(static_cast<double>(logits.f32()[i]), 2);
  const double deviation = std::sqrt(squares / 500);
  EXPECT_GE(deviation, 0.3);
  EXPECT_LE(deviation, 3);
  EXPECT_NE(random_model(c, 2).weights->flat()[100], m.weights->flat()[100]);
}

}  // namespace
}  // namespace rwkv
