#pragma once
/// config.json of transformers folders, as far as it concerns RWKV models.

#include <cstdint>
#include <optional>
#include <string>

#include "data/io/tensor_type.h"
#include "model/config.h"

namespace rwkv {

struct HfConfig {
  std::string model_type, activation;
  int64_t head_size = 0;  ///< 0: not given
  int64_t n_layer = 0, n_embd = 0, vocab_size = 0;
  double norm_eps = 1e-5;
  bool tied = false, norm_first = true, norm_bias = true, has_attention = false;
};

/// The config.json in a folder, or beside a file; none if there is none. Throws IoError if it
/// cannot be read.
std::optional<HfConfig> read_hf_config(const std::string& path);
/// Throws IoError for what would change the computation and is not supported.
void check_hf_config(const HfConfig& hf, const std::string& architecture, const std::string& path);
/// Throws IoError unless its sizes are those of the tensors.
void check_hf_sizes(const HfConfig& hf, const ModelConfig& config, const std::string& path);

/// For the fla layout (RWKV-7) or transformers' own (RWKV-4).
std::string hf_config_json(const ModelConfig& config, TensorType type);

}  // namespace rwkv
