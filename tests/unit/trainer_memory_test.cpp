// What a run needs against what host and GPU have: items, limits and the messages of a refusal.

#include "trainer/memory.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/core/error.h"
#include "trainer/config.h"
#include "trainer/dry_run.h"
#include "trainer/trainer.h"

namespace rwkv {
namespace {

constexpr size_t kMiB = size_t{1} << 20, kGiB = size_t{1} << 30;

const std::vector<MemoryItem> kItems = {
    {"activations", 100 * kGiB}, {"gradients", 10 * kGiB}, {"workspace", kGiB}, {"other", kMiB}};

template <class E, class Fn>
std::string refusal(int exit_code, const Fn& fn) {
  try {
    fn();
  } catch (const E& e) {
    EXPECT_EQ(e.exit_code(), exit_code);
    return e.what();
  } catch (const std::exception& e) {
    ADD_FAILURE() << "wrong type of exception: " << e.what();
    return {};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

TEST(DeviceMemory, RefusesWhatIsNotFree) {
  const std::string text = refusal<DeviceError>(4, [] {
    require_device_memory(kItems, {110 * kGiB, 139 * kGiB}, 0);
  });
  expect_parts(text, {"needs 111.00 GiB", "activations 100.00 GiB", "gradients 10.00 GiB",
                      "workspace 1.00 GiB", "only 110.00 GiB of its 139.00 GiB are free",
                      "nvidia-smi", "train.batch", "train.context", "train.micro_batches",
                      "train.grad_checkpointing=block", "train.loss_chunk_tokens"});
  // Alone on the card there is nobody to look for.
  const std::string alone = refusal<DeviceError>(4, [] {
    require_device_memory(kItems, {79 * kGiB, 80 * kGiB}, 0);
  });
  EXPECT_EQ(alone.find("nvidia-smi"), std::string::npos) << alone;
  EXPECT_NO_THROW(require_device_memory(kItems, {112 * kGiB, 139 * kGiB}, 0));
}

TEST(DeviceMemory, TheConfiguredLimitCountsForTheDevice) {
  const backend::DeviceMemory h200{138 * kGiB, 139 * kGiB};
  const std::string text =
      refusal<ConfigError>(2, [&] { require_device_memory(kItems, h200, 50 * 1024); });
  expect_parts(text, {"needs 111.00 GiB", "limits.memory_mib allows 50.00 GiB", "train.batch"});
  EXPECT_NO_THROW(require_device_memory(kItems, h200, 112 * 1024));
  // A limit is no permission to take what is not there.
  refusal<DeviceError>(4, [] { require_device_memory(kItems, {kGiB, 139 * kGiB}, 200 * 1024); });
}

TEST(HostMemory, RefusesAsConfiguration) {
  const std::string text = refusal<ConfigError>(2, [] { require_memory(kItems, 100 * kGiB); });
  expect_parts(text, {"needs 111.00 GiB", "only 100.00 GiB are available", "train.batch"});
  EXPECT_NO_THROW(require_memory(kItems, 112 * kGiB));
  EXPECT_NO_THROW(require_memory(kItems, 0));  // unknown
  for (const bool collects : {true, false}) {
    const std::string host =
        refusal<ConfigError>(2, [&] { require_host_memory(kItems, 100 * kGiB, collects); });
    expect_parts(host, {"on the host", "needs 111.00 GiB", "only 100.00 GiB are available",
                        "dist.checkpoint=parallel", "sample.every=0"});
    EXPECT_EQ(host.find("train.batch"), std::string::npos) << "does not help: " << host;
    EXPECT_NO_THROW(require_host_memory(kItems, 112 * kGiB, collects));
    EXPECT_NO_THROW(require_host_memory(kItems, 0, collects));
  }
}

TEST(HostMemory, RanksOfOneMachineAreJudgedTogether) {
  // Each fits alone; on node1 they do not fit together.
  std::vector<HostShare> ranks = {{"node0:1", 40 * kGiB, 100 * kGiB},
                                  {"node1:2", 30 * kGiB, 64 * kGiB},
                                  {"node0:1", 50 * kGiB, 101 * kGiB},
                                  {"node1:2", 35 * kGiB, 66 * kGiB}};
  const auto excess = find_host_excess(ranks);
  ASSERT_TRUE(excess.has_value());
  EXPECT_EQ(excess->ranks, (std::vector<int>{1, 3}));
  EXPECT_EQ(excess->bytes, kGiB);
  expect_parts(excess->words, {"ranks 1, 3 on node1 together need 65.00 GiB", "rank 3 35.00 GiB",
                               "only 64.00 GiB are available"});
  ranks[3].needs = 34 * kGiB;
  EXPECT_FALSE(find_host_excess(ranks).has_value());
  // A machine of the same name is another one; what is unknown limits nothing.
  ranks[3] = {"node1:3", 60 * kGiB, 64 * kGiB};
  EXPECT_FALSE(find_host_excess(ranks).has_value());
  for (HostShare& r : ranks) r = {"node0:1", 60 * kGiB, 0};
  EXPECT_FALSE(find_host_excess(ranks).has_value());
  ranks[2].available = 100 * kGiB;
  EXPECT_EQ(find_host_excess(ranks)->ranks.size(), 4u);
  const auto alone = find_host_excess(std::vector<HostShare>{{"node0:1", 2 * kGiB, kGiB}});
  ASSERT_TRUE(alone.has_value());
  expect_parts(alone->words, {"rank 0 on node0 needs 2.00 GiB", "only 1.00 GiB"});
}

TrainConfig config(std::vector<std::string> settings = {}) {
  return parse_config(R"({"model": {"n_layer": 2, "n_embd": 128, "vocab_size": 300},
                          "train": {"context": 64, "batch": 4, "steps": 1}})",
                      "memory.json", settings);
}

size_t bytes_of(const std::vector<MemoryItem>& items, const std::string& name) {
  const auto it = std::ranges::find(items, name, &MemoryItem::name);
  return it == items.end() ? 0 : it->bytes;
}

TEST(StepMemory, NamesWhatTheCpuHolds) {
  const TrainConfig c = config();
  const TrainStep step(c.model, step_options(c, Device::kCpu));
  const auto items = step.memory();
  const auto flat = static_cast<size_t>(step.model().params().flat_elements()) * sizeof(float);
  EXPECT_EQ(bytes_of(items, "parameters"), flat);
  EXPECT_EQ(bytes_of(items, "optimizer moments"), 2 * flat);
  EXPECT_EQ(bytes_of(items, "bf16 copies of the matrices"), 0u);
  EXPECT_EQ(bytes_of(items, "workspace of cuBLASLt"), 0u);
  EXPECT_TRUE(std::ranges::is_sorted(items, std::greater<>{}, &MemoryItem::bytes));
  EXPECT_THROW(require_memory(step, 1), ConfigError);
  EXPECT_NO_THROW(require_memory(step, 0));
  // Of several ranks the one that collects for a checkpoint of one file is told how to do without.
  for (const char* form : {"gathered", "parallel"}) {
    TrainConfig ranks = config({str("dist.checkpoint=", form)});
    ranks.ranks = 2;
    const std::string text = refusal<ConfigError>(
        2, [&] { require_memory(TrainStep(ranks.model, step_options(ranks, Device::kCpu)), 1); });
    expect_parts(text, {"only 1.0 MiB are available", "train.batch", "Not even train.batch=1"});
    EXPECT_EQ(text.find("dist.checkpoint=parallel") != text.npos, form == std::string("gathered"))
        << text;
  }
}

// Planning for a GPU needs CUDA kernels in the build, but no device.
TEST(StepMemory, NamesWhatTheGpuHolds) {
  if (!backend::has_cuda()) GTEST_SKIP() << "a build without CUDA";
  for (const char* dtype : {"bf16", "f32"}) {
    const TrainConfig c = config({std::string("kernels.dtype=") + dtype});
    const TrainStep step(c.model, step_options(c, Device::kCuda));
    const auto items = step.memory();
    const auto elements = static_cast<size_t>(step.model().params().flat_elements());
    EXPECT_EQ(bytes_of(items, "parameters"), 4 * elements);
    EXPECT_EQ(bytes_of(items, "gradients"), 4 * elements);
    EXPECT_EQ(bytes_of(items, "optimizer moments"), 8 * elements);
    EXPECT_EQ(bytes_of(items, "bf16 copies of the matrices"),
              std::string(dtype) == "bf16" ? 2 * elements : 0);
    EXPECT_EQ(bytes_of(items, "activations"), step.plan().activation_bytes());
    EXPECT_EQ(bytes_of(items, "workspace of cuBLASLt"),
              static_cast<size_t>(step.options().lanes) * backend::kGemmWorkspaceBytes);
    EXPECT_EQ(bytes_of(items, "kernels and libraries"), kDeviceOverheadBytes);
    EXPECT_TRUE(std::ranges::is_sorted(items, std::greater<>{}, &MemoryItem::bytes));
  }
}

TEST(StepMemory, NamesWhatRanksTake) {
  if (!backend::has_cuda()) GTEST_SKIP() << "a build without CUDA";
  const auto step_of = [](std::vector<std::string> settings, int64_t ranks) {
    TrainConfig c = config(std::move(settings));
    c.ranks = ranks;
    return TrainStep(c.model, step_options(c, Device::kCuda));
  };
  const TrainStep one = step_of({}, 1), four = step_of({}, 4),
                  apart = step_of({"dist.checkpoint=parallel"}, 4),
                  samples = step_of({"dist.checkpoint=parallel", "sample.every=10"}, 4);
  EXPECT_EQ(bytes_of(one.memory(), "NCCL"), 0u);
  EXPECT_EQ(bytes_of(four.memory(), "NCCL"), kNcclBytes);
  const auto elements = static_cast<size_t>(one.model().params().flat_elements());
  const std::string copies = "host copies of parameters and moments";
  const std::string part = "initial values or a checkpoint's part of this rank";
  EXPECT_EQ(bytes_of(one.host_memory(), copies), 12 * elements);
  EXPECT_EQ(bytes_of(one.host_memory(), part), 0u);
  EXPECT_EQ(bytes_of(four.host_memory(), copies), 12 * elements);
  EXPECT_EQ(bytes_of(apart.host_memory(), copies), 0u) << "nothing is collected";
  // Rank 0 has the most expensive tensor: its values and twice as much for its factorisation.
  const size_t expensive = 4 * 128 * 512;
  EXPECT_GE(bytes_of(apart.host_memory(), part), std::max(elements, 3 * expensive));
  EXPECT_LE(bytes_of(apart.host_memory(), part), 4 * elements);
  EXPECT_EQ(bytes_of(samples.host_memory(), copies), 12 * elements);
}

TEST(StepMemory, TheBatchThatIsNamedFits) {
  if (!backend::has_cuda()) GTEST_SKIP() << "a build without CUDA";
  // The batch of the config is beyond the tokens up to which kernels have lanes, the one that fits
  // is not: its lanes need memory, too.
  const auto needs = [](int64_t batch) {
    const TrainConfig c = config({"train.context=2048", str("train.batch=", batch)});
    return total_bytes(TrainStep(c.model, step_options(c, Device::kCuda)).memory());
  };
  const TrainConfig c = config({"train.context=2048", "train.batch=64"});
  const TrainStep step(c.model, step_options(c, Device::kCuda));
  const size_t limit = needs(20);
  const std::string text = smaller_batch_advice(step, limit), before = "fits here is ";
  const size_t at = text.find(before);
  ASSERT_NE(at, std::string::npos) << text;
  const int64_t batch = std::stoll(text.substr(at + before.size()));
  EXPECT_GE(batch, 20);
  EXPECT_LT(batch, 64);
  EXPECT_LE(needs(batch), limit);
}

TEST(StepMemory, DryRunForAGpuNeedsNone) {
  if (!backend::has_cuda()) GTEST_SKIP() << "a build without CUDA";
  const std::string report = dry_run_report(config({"limits.memory_mib=1"}), Device::kCuda);
  bool gpu = true;
  try {
    backend::cuda_memory();
  } catch (const DeviceError&) {
    gpu = false;
  }
  EXPECT_NE(report.find(gpu ? "NO: only 1.0 MiB"
                            : "NOT within limits.memory_mib. Not even train.batch=1 fits here."),
            std::string::npos)
      << report;
  EXPECT_NE(dry_run_report(config(), Device::kCuda).find("fits"), std::string::npos);
}

}  // namespace
}  // namespace rwkv
