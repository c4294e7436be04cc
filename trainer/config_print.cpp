#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainer/config.h"
#include "trainer/config_fields.h"

namespace rwkv {

using Json = nlohmann::ordered_json;

std::vector<ConfigEntry> config_entries(const TrainConfig& config) {
  std::vector<ConfigEntry> entries;
  const auto origin = [&](const std::string& key) {
    const auto it = config.origin.find(key);
    return it == config.origin.end() ? std::string("default") : it->second;
  };
  const Json model = Json::parse(model_config_json(config.model));
  for (const auto& [key, value] : model.items())
    entries.push_back({"model." + key, value.dump(), origin("model." + key), "size of the model"});
  detail::visit_fields(config,
                       [&](const char* key, const auto& value, const auto&, const char* help) {
                         entries.push_back({key, Json(value).dump(), origin(key), help});
                       });
  return entries;
}

std::string print_config(const TrainConfig& config) {
  const auto entries = config_entries(config);
  size_t key_width = 0, value_width = 0;
  for (const auto& e : entries) {
    key_width = std::max(key_width, e.key.size());
    value_width = std::max(value_width, std::min<size_t>(e.value.size(), 40));
  }
  std::string out;
  for (const auto& e : entries) {
    out += e.key + std::string(key_width - e.key.size() + 2, ' ') + e.value;
    if (e.value.size() < value_width) out.append(value_width - e.value.size(), ' ');
    out += "  " + e.origin + "\n";
  }
  return out;
}

std::string config_json(const TrainConfig& config) {
  Json root;
  root["model"] = Json::parse(model_config_json(config.model));
  detail::visit_fields(config, [&](const char* key, const auto& value, const auto&, const char*) {
    const std::string_view k = key;
    const size_t dot = k.find('.');
    root[std::string(k.substr(0, dot))][std::string(k.substr(dot + 1))] = value;
  });
  return root.dump();
}

}  // namespace rwkv
