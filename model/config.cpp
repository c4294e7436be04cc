#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "data/io/json_depth.h"
#include "kernels/core/edit_distance.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

using Field = std::pair<std::string_view, int64_t ModelConfig::*>;
constexpr std::array<Field, 9> kFields = {{
    {"n_layer", &ModelConfig::n_layer},
    {"n_embd", &ModelConfig::n_embd},
    {"vocab_size", &ModelConfig::vocab_size},
    {"head_size", &ModelConfig::head_size},
    {"dim_ffn", &ModelConfig::dim_ffn},
    {"rank_w", &ModelConfig::rank_w},
    {"rank_a", &ModelConfig::rank_a},
    {"rank_v", &ModelConfig::rank_v},
    {"rank_g", &ModelConfig::rank_g},
}};

/// Fields that RWKV-4 has no use for.
bool is_rwkv7_only(const Field& f) {
  return f.first == "head_size" || f.first.starts_with("rank_");
}

}  // namespace

int64_t low_rank_width(int64_t n_embd, double factor) {
  // std::nearbyint rounds half to even in the default rounding mode, as the reference does.
  const double r = std::nearbyint(factor * std::sqrt(static_cast<double>(n_embd)) / 32);
  return std::max<int64_t>(32, 32 * static_cast<int64_t>(r));
}

void ModelConfig::finish() {
  const auto in_range = [](const char* name, int64_t value, int64_t low, int64_t high) {
    RWKV_CHECK(value >= low && value <= high, ConfigError, "model config: ", name, " is ", value,
               ", expected ", low, " to ", high);
  };
  const bool v4 = architecture == "rwkv4";
  RWKV_CHECK(v4 || architecture == "rwkv7", ConfigError, "model config: architecture is '",
             architecture, "', this version knows 'rwkv7' and 'rwkv4'");
  in_range("n_layer", n_layer, 2, 1024);  // the initial values divide by n_layer - 1
  in_range("n_embd", n_embd, 32, 65536);
  in_range("vocab_size", vocab_size, 2, 1 << 24);
  if (dim_ffn == 0) dim_ffn = 4 * n_embd;
  in_range("dim_ffn", dim_ffn, 1, 1 << 20);
  if (v4) {
    for (const Field& f : kFields)
      RWKV_CHECK(!is_rwkv7_only(f) || this->*f.second == 0, ConfigError, "model config: ", f.first,
                 " is ", this->*f.second,
                 ", but rwkv4 has no heads and no low-rank matrices; "
                 "leave it out");
    return;
  }
  if (head_size == 0) head_size = 64;
  RWKV_CHECK(head_size == 32 || head_size == 64 || head_size == 128, ConfigError,
             "model config: head_size is ", head_size, ", expected 32, 64 or 128");
  RWKV_CHECK(n_embd % head_size == 0, ConfigError, "model config: n_embd is ", n_embd,
             ", expected a multiple of head_size ", head_size);
  if (rank_w == 0) rank_w = low_rank_width(n_embd, 2.5);
  if (rank_a == 0) rank_a = low_rank_width(n_embd, 2.5);
  if (rank_v == 0) rank_v = low_rank_width(n_embd, 1.7);
  if (rank_g == 0) rank_g = low_rank_width(n_embd, 5);
  in_range("rank_w", rank_w, 1, 1 << 16);
  in_range("rank_a", rank_a, 1, 1 << 16);
  in_range("rank_v", rank_v, 1, 1 << 16);
  in_range("rank_g", rank_g, 1, 1 << 16);
}

ParameterCount count_parameters(const ModelConfig& c) {
  const int64_t d = c.n_embd;
  if (c.architecture == "rwkv4") {
    const int64_t layer = 11 * d + 5 * d * d + 2 * d * c.dim_ffn;
    const int64_t total = 2 * c.vocab_size * d + 4 * d + c.n_layer * layer;
    return {.used = total, .total = total};
  }
  const int64_t layer =
      19 * d + 4 * d * d + 2 * d * c.dim_ffn + 2 * d * (c.rank_w + c.rank_a + c.rank_v + c.rank_g);
  const int64_t total = 2 * c.vocab_size * d + 4 * d + c.n_layer * layer;
  return {.used = total - (d + 2 * d * c.rank_v), .total = total};
}

ModelConfig parse_model_config(const std::string& json_text, const std::string& where) {
  RWKV_CHECK(!json_deeper_than(json_text), ConfigError, "reading the model of ", where,
             ": its JSON is nested too deep; expected an object with n_layer, n_embd, vocab_size");
  nlohmann::json j;
  try {
    j = nlohmann::json::parse(json_text, nullptr, true, true);
  } catch (const nlohmann::json::exception& e) {
    throw ConfigError(str("reading the model of ", where, ": not JSON: ", e.what()));
  }
  RWKV_CHECK(j.is_object(), ConfigError, "reading the model of ", where, ": found ", j.type_name(),
             ", expected an object with n_layer, n_embd, vocab_size");
  ModelConfig config;
  for (const auto& [key, value] : j.items()) {
    if (key == "architecture") {
      RWKV_CHECK(value.is_string(), ConfigError, where, ": model.architecture is ", value.dump(),
                 ", expected a string");
      config.architecture = value.get<std::string>();
      continue;
    }
    const auto field = std::ranges::find(kFields, key, &Field::first);
    if (field == kFields.end()) {
      std::string_view nearest = "architecture";
      for (const auto& f : kFields)
        if (edit_distance(key, f.first) < edit_distance(key, nearest)) nearest = f.first;
      std::string known = "architecture";
      for (const auto& f : kFields) known += str(", ", f.first);
      throw ConfigError(str(where, ": unknown key 'model.", key, "'; ",
                            worth_suggesting(edit_distance(key, nearest), key)
                                ? str("did you mean '", nearest, "'?")
                                : str("there are ", known)));
    }
    RWKV_CHECK(value.is_number_integer(), ConfigError, where, ": model.", key, " is ", value.dump(),
               ", expected an integer");
    config.*(field->second) = value.get<int64_t>();
  }
  try {
    config.finish();
  } catch (const ConfigError& e) {
    throw ConfigError(str(where, ": ", e.what()));
  }
  return config;
}

std::string model_config_json(const ModelConfig& config) {
  nlohmann::ordered_json j;
  j["architecture"] = config.architecture;
  for (const Field& f : kFields)
    if (config.architecture != "rwkv4" || !is_rwkv7_only(f))
      j[std::string(f.first)] = config.*f.second;
  return j.dump();
}

}  // namespace rwkv
