#include "model/hf_config.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/io/atomic_file.h"
#include "data/io/json_depth.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr uintmax_t kMaxBytes = 16 << 20;

/// The first of the names that is there and not null; `other` if none is.
template <class T>
T member(const Json& j, std::initializer_list<const char*> names, T other) {
  for (const char* n : names)
    if (const auto it = j.find(n); it != j.end() && !it->is_null()) return it->get<T>();
  return other;
}

const char* torch_name(TensorType type) {
  return type == TensorType::kF32 ? "float32" : type == TensorType::kF16 ? "float16" : "bfloat16";
}

}  // namespace

std::optional<HfConfig> read_hf_config(const std::string& path) {
  std::error_code ec;
  const fs::path folder =
      fs::is_directory(path, ec) ? fs::path(path) : fs::path(path).parent_path();
  const fs::path file = folder / "config.json";
  if (!fs::is_regular_file(file, ec)) return std::nullopt;
  RWKV_CHECK(fs::file_size(file, ec) <= kMaxBytes, IoError, "reading ", file.string(),
             ": it is too large for a config.json");
  const std::string text = read_file(file.string());
  RWKV_CHECK(!json_deeper_than(text), IoError, "reading ", file.string(),
             ": it is nested too deep");
  try {
    const Json j = Json::parse(text);
    // A config.json of something else may lie beside a single file.
    if (!j.is_object() || !j.contains("model_type")) return std::nullopt;
    HfConfig c;
    c.model_type = member<std::string>(j, {"model_type"}, "");
    c.activation = member<std::string>(j, {"hidden_act"}, "sqrelu");
    c.head_size = member<int64_t>(j, {"head_dim", "head_size"}, 0);
    c.n_layer = member<int64_t>(j, {"num_hidden_layers"}, 0);
    c.n_embd = member<int64_t>(j, {"hidden_size"}, 0);
    c.vocab_size = member<int64_t>(j, {"vocab_size"}, 0);
    c.norm_eps = member<double>(j, {"norm_eps", "layer_norm_epsilon"}, 1e-5);
    c.tied = member<bool>(j, {"tie_word_embeddings"}, false);
    c.norm_first = member<bool>(j, {"norm_first"}, true);
    c.norm_bias = member<bool>(j, {"norm_bias"}, true);
    c.has_attention = j.contains("attn") && !j["attn"].is_null();
    return c;
  } catch (const Json::exception& e) {
    throw IoError(str("reading ", file.string(), ": ", e.what()));
  }
}

void check_hf_config(const HfConfig& hf, const std::string& architecture, const std::string& path) {
  const auto fail = [&](const std::string& what) {
    throw IoError(str("opening ", path, ": config.json says ", what));
  };
  const std::string expected = architecture == "rwkv7" ? "rwkv7" : "rwkv";
  if (hf.model_type != expected)
    fail(str("model_type '", hf.model_type, "', the tensors are those of '", expected, "'"));
  if (!(std::fabs(hf.norm_eps - 1e-5) < 1e-9))
    fail(str("a norm epsilon of ", hf.norm_eps, ", this version computes with 1e-5"));
  if (architecture != "rwkv7") return;
  if (hf.activation != "sqrelu")
    fail(str("hidden_act '", hf.activation, "', this version has sqrelu"));
  if (hf.has_attention)
    fail("that some layers are attention layers (attn), which this version lacks");
  if (!hf.norm_first || !hf.norm_bias)
    fail(
        "norm_first or norm_bias false: the model has no norm after its embedding, or norms "
        "without bias, which this version lacks");
}

void check_hf_sizes(const HfConfig& hf, const ModelConfig& c, const std::string& path) {
  const auto check = [&](const char* name, int64_t says, int64_t is) {
    RWKV_CHECK(says == 0 || says == is, IoError, "opening ", path, ": config.json says ", name, " ",
               says, ", the tensors ", is, "; do they belong together?");
  };
  check("num_hidden_layers", hf.n_layer, c.n_layer);
  check("hidden_size", hf.n_embd, c.n_embd);
  check("vocab_size", hf.vocab_size, c.vocab_size);
  if (c.architecture == "rwkv7") check("head_dim", hf.head_size, c.head_size);
}

std::string hf_config_json(const ModelConfig& c, TensorType type) {
  nlohmann::ordered_json j;
  if (c.architecture == "rwkv4") {
    j["architectures"] = {"RwkvForCausalLM"};
    j["model_type"] = "rwkv";
    j["vocab_size"] = c.vocab_size;
    j["context_length"] = 1024;
    j["hidden_size"] = c.n_embd;
    j["num_hidden_layers"] = c.n_layer;
    j["attention_hidden_size"] = c.n_embd;
    j["intermediate_size"] = c.dim_ffn;
    j["layer_norm_epsilon"] = 1e-5;
    j["bos_token_id"] = 0;
    j["eos_token_id"] = 0;
    j["rescale_every"] = 6;
    j["tie_word_embeddings"] = false;
    j["use_cache"] = true;
    j["torch_dtype"] = torch_name(type);
    return j.dump(2) + "\n";
  }
  j["architectures"] = {"RWKV7ForCausalLM"};
  j["model_type"] = "rwkv7";
  j["vocab_size"] = c.vocab_size;
  j["hidden_size"] = c.n_embd;
  j["num_hidden_layers"] = c.n_layer;
  j["hidden_ratio"] = static_cast<double>(c.dim_ffn) / static_cast<double>(c.n_embd);
  j["intermediate_size"] = c.dim_ffn;
  j["head_dim"] = c.head_size;
  j["num_heads"] = c.n_head();
  j["decay_low_rank_dim"] = c.rank_w;
  j["a_low_rank_dim"] = c.rank_a;
  j["v_low_rank_dim"] = c.rank_v;
  j["gate_low_rank_dim"] = c.rank_g;
  j["value_dim"] = std::vector<int64_t>(static_cast<size_t>(c.n_layer), c.n_embd);
  j["attn"] = nullptr;
  j["attn_mode"] = "chunk";
  j["hidden_act"] = "sqrelu";
  j["norm_first"] = true;
  j["norm_bias"] = true;
  j["norm_eps"] = 1e-5;
  j["max_position_embeddings"] = 2048;
  j["bos_token_id"] = 0;
  j["eos_token_id"] = 0;
  j["pad_token_id"] = 0;
  j["tie_word_embeddings"] = false;
  j["fuse_norm"] = false;
  j["fuse_cross_entropy"] = true;
  j["use_cache"] = true;
  j["initializer_range"] = 0.02;
  j["torch_dtype"] = torch_name(type);
  return j.dump(2) + "\n";
}

}  // namespace rwkv
