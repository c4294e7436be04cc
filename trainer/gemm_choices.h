#pragma once
/// Choices of matrix product algorithms that outlive a run, so that reruns and resumed runs compute
/// with the same algorithms and do not measure again.

#include <functional>
#include <string>

#include "trainer/train_step.h"

namespace rwkv {

/// Prepares an allocated step (TrainStep::prepare). For each of its products the algorithm is that
/// of `known` (from a checkpoint) if it is there, else that of the cache, else measured and added
/// to the cache: gemm-<hash of device and library>.txt in $RWKV_CACHE_DIR, $XDG_CACHE_HOME/greylag
/// or
/// ~/.cache/greylag. A cache that cannot be read or written is reported to `message` and does no
/// harm: the run itself stays reproducible through its checkpoints.
/// Returns the choices in use, for the checkpoint; `known` on the CPU.
std::string prepare_step(TrainStep& step, const std::string& known,
                         const std::function<void(const std::string&)>& message);

}  // namespace rwkv
