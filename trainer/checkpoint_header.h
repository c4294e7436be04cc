#pragma once
/// What both forms of checkpoints have besides tensors. For trainer/*checkpoint.cpp.

#include <string>

#include "data/io/hdf5_file.h"
#include "trainer/checkpoint.h"

namespace rwkv {

inline constexpr const char* kShardSuffix = ".shards";

/// /trainer and the checksums of all small datasets, which must be there.
void write_checkpoint_header(Hdf5File& file, const TrainerState& state,
                             const std::string& config_json);
/// Checks everything that should hold before any number of the file is believed. Throws IoError,
/// ConfigError if it holds another model than `model`. `path` names the checkpoint in errors.
TrainerState read_checkpoint_header(const Hdf5File& file, const ModelConfig& model,
                                    const std::string& path, std::string* config_json);

}  // namespace rwkv
