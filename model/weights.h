#pragma once
/// Model files: HDF5 with everything that inference needs. Training checkpoints are model files
/// with more groups in them (trainer/checkpoint.h).
///
///   /model/config      string: the JSON of model_config_json
///   /model/format      string: "greylag-model 1"
///   /weights/NAME      f32, the public checkpoints' names and shapes, e.g. weights/emb.weight
///   /tokenizer/name    string: "bytes", "world", ...; absent if unknown
///   /tokenizer/hash    string
///   /tokenizer/blob    u8 [n]: the vocabulary, deflated; absent for bytes
///   attribute "crc32" (integer) on every dataset of /weights

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/params.h"

namespace rwkv {

class Hdf5File;

/// The tokenizer that a model was trained with, as opaque bytes.
struct TokenizerBlob {
  std::string name, hash;
  std::vector<uint8_t> blob;
};

/// Writes /model, /weights and /tokenizer. Throws IoError.
void write_model(Hdf5File& file, const ModelConfig& config, const ParamRegistry& params,
                 const ParamStore& values, const TokenizerBlob& tokenizer);

/// The parts of write_model, for files that are written tensor by tensor: everything but the
/// weights, then each tensor of /weights with its checksum.
void write_model_header(Hdf5File& file, const ModelConfig& config, const TokenizerBlob& tokenizer);
void write_weight(Hdf5File& file, const std::string& name, const std::vector<int64_t>& shape,
                  std::span<const float> values);

ModelConfig read_model_config(const Hdf5File& file);
TokenizerBlob read_tokenizer(const Hdf5File& file);
/// Fills values. Layer 0's unused v0, v1, v2 may be in the file or not. Throws IoError naming file
/// and dataset for missing, surplus, misshapen, corrupt (checksum) or non-finite tensors.
void read_weights(const Hdf5File& file, const ParamRegistry& params, ParamStore& values);

/// Helpers that checkpoints use for further groups of parameter-shaped tensors ("optimizer/m").
void write_param_group(Hdf5File& file, const std::string& group, const ParamRegistry& params,
                       const ParamStore& store);
void read_param_group(const Hdf5File& file, const std::string& group, const ParamRegistry& params,
                      ParamStore& store);

}  // namespace rwkv
