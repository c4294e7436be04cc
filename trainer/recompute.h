#pragma once
/// How much of the forward is computed twice to save memory.

#include <cstddef>
#include <cstdint>

#include "trainer/config.h"
#include "trainer/train_step.h"

namespace rwkv {

/// What is kept free of a device's memory beside what a step plans: buffers of NCCL and whatever
/// else the planner does not know.
inline constexpr size_t kSpareDeviceBytes = size_t{3} << 30;

/// The fewest blocks that must be computed again for the step to fit into `limit` bytes (0: no
/// limit), less kSpareDeviceBytes on CUDA. 0: none; -1: not even all suffice. Plans a few steps;
/// allocates nothing. What `options` says of recomputation does not matter.
int64_t fewest_recomputed_blocks(const ModelConfig& config, TrainStepOptions options, size_t limit);

/// The config with train.grad_checkpointing=auto replaced by what fits now: of several ranks into
/// the one with the least free memory, and as much on all as the one that needs most (a collective
/// then). If nothing fits all blocks are computed
/// again, and whoever checks memory refuses. Other configs come back as they are.
TrainConfig with_recomputation(const TrainConfig& config, Device device, Communicator* comm);

}  // namespace rwkv
