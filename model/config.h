#pragma once
/// Sizes of a model.

#include <cstdint>
#include <string>
#include <string_view>

namespace rwkv {

/// Everything that determines the tensors of a model and their shapes.
struct ModelConfig {
  std::string architecture = "rwkv7";  ///< or "rwkv4"
  int64_t n_layer = 0;
  int64_t n_embd = 0;      ///< D; RWKV-7: a multiple of head_size (and of 32)
  int64_t vocab_size = 0;  ///< rows of emb and head
  int64_t head_size = 0;   ///< RWKV-7: 32, 64 or 128, 0 means 64; RWKV-4 has no heads: 0
  int64_t dim_ffn = 0;     ///< width of the channel mix; 0 means 4 D
  /// Low-rank widths of decay, in-context learning rate, value residual and gate; 0 means the
  /// formula of spec rwkv7 1.1. RWKV-4 has none: 0.
  int64_t rank_w = 0, rank_a = 0, rank_v = 0, rank_g = 0;

  int64_t n_head() const { return n_embd / head_size; }  ///< RWKV-7, after finish()

  /// Fills in the zeros that stand for a formula and checks everything.
  /// Throws ConfigError naming the field, what was found and what is allowed.
  void finish();
  bool operator==(const ModelConfig&) const = default;
};

/// R(factor) = max(32, 32 round_half_even(factor sqrt(D) / 32)): spec rwkv7 1.1.
int64_t low_rank_width(int64_t n_embd, double factor);

/// Parameters of the model: `used` in the graph, `total` with layer 0's unused v0, v1, v2, which
/// the reference trainer's files hold (spec rwkv7 1.5). RWKV-4 has no unused ones (spec rwkv4 1).
struct ParameterCount {
  int64_t used, total;
};
ParameterCount count_parameters(const ModelConfig& config);

/// From the JSON object of a config or model file. `where` names it in errors. Unknown keys are
/// errors that name the nearest known one. Calls finish().
ModelConfig parse_model_config(const std::string& json_text, const std::string& where);
/// All fields of the architecture, in a fixed order.
std::string model_config_json(const ModelConfig& config);

}  // namespace rwkv
