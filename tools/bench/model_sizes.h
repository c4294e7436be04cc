#pragma once
/// Sizes of the public RWKV-7 models, for benchmarks with random weights.

#include <string>

#include "kernels/core/dtype.h"
#include "model/config.h"

namespace rwkv::bench {

/// 0.1B, 1.5B, 2.9B or 7.2B, with the low-rank widths of their files. Throws ConfigError.
ModelConfig public_model(const std::string& size);

/// f16, bf16 or f32. Throws ConfigError that names the flag.
DType decode_dtype(const std::string& flag, const std::string& name);

}  // namespace rwkv::bench
