#pragma once
/// Models without a file, for load tests.

#include <cstdint>

#include "inference/load.h"

namespace rwkv {

/// Random weights of this size, in which every block takes part: logits of deviation about one.
/// Texts are noise. 4 bytes per parameter of host memory.
LoadedModel random_model(const ModelConfig& config, uint64_t seed);

}  // namespace rwkv
