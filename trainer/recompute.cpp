#include "trainer/recompute.h"

#include <algorithm>
#include <vector>

#include "trainer/memory.h"
#include "trainer/trainer.h"

namespace rwkv {

int64_t fewest_recomputed_blocks(const ModelConfig& config, TrainStepOptions options,
                                 size_t limit) {
  if (limit == 0) return 0;
  if (options.device == Device::kCuda) limit -= std::min(limit, kSpareDeviceBytes);
  const auto fits = [&](int64_t blocks) {
    options.grad_checkpointing = blocks > 0 ? GradCheckpointing::kBlock : GradCheckpointing::kNone;
    options.recompute_blocks = blocks;
    return total_bytes(TrainStep(config, options).memory()) <= limit;
  };
  if (fits(0)) return 0;
  if (!fits(config.n_layer)) return -1;
  int64_t too_few = 0, enough = config.n_layer;
  while (enough - too_few > 1) {
    const int64_t middle = too_few + (enough - too_few) / 2;
    (fits(middle) ? enough : too_few) = middle;
  }
  return enough;
}

TrainConfig with_recomputation(const TrainConfig& config, Device device, Communicator* comm) {
  if (config.train.grad_checkpointing != "auto") return config;
  size_t limit = memory_limit(device, config.limits.memory_mib);
  if (comm != nullptr) {
    // CPU ranks share what their machine has.
    const std::vector<int> sharing = ranks_of_machines(comm->group());
    if (device == Device::kCpu && config.limits.memory_mib == 0)
      limit /= static_cast<size_t>(sharing[static_cast<size_t>(comm->rank())]);
    std::vector<size_t> all(static_cast<size_t>(comm->size()));
    comm->group().all_gather(&limit, sizeof limit, all.data());
    limit = std::ranges::min(all);
  }
  TrainConfig out = config;
  HostGroup* group = comm == nullptr ? nullptr : &comm->group();
  int64_t n = 0;
  agree(group, [&] {
    n = fewest_recomputed_blocks(config.model, step_options(config, device, comm), limit);
  });
  if (comm != nullptr) {
    // Rank 0 may hold more than the others: copies for checkpoints.
    const int64_t mine = n < 0 ? config.model.n_layer : n;
    std::vector<int64_t> all(static_cast<size_t>(comm->size()));
    comm->group().all_gather(&mine, sizeof mine, all.data());
    n = std::ranges::max(all);
  }
  out.train.grad_checkpointing = n == 0 ? "none" : "block";
  out.train.recompute_blocks = std::max<int64_t>(n, 0);
  return out;
}

}  // namespace rwkv
