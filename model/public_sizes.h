#pragma once
/// Sizes of the public RWKV-7 models (World and G1): for sizing, benchmarks and tests without a
/// file.

#include <span>
#include <string_view>

#include "model/config.h"

namespace rwkv {

/// "0.1B", "0.4B", "1.5B", "2.9B", "7.2B", "13.3B".
std::span<const std::string_view> public_model_sizes();
/// Vocabulary 65536, head size 64, low-rank widths as in the files. Throws ConfigError for another
/// size.
ModelConfig public_model_config(std::string_view size);

}  // namespace rwkv
