#include "trainer/config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/io/atomic_file.h"
#include "data/io/json_depth.h"
#include "kernels/core/edit_distance.h"
#include "kernels/core/error.h"
#include "trainer/config_fields.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::vector<std::string> known_keys() {
  std::vector<std::string> keys;
  TrainConfig c;
  detail::visit_fields(
      c, [&](const char* key, auto&, const auto&, const char*) { keys.emplace_back(key); });
  for (const char* k : {"model", "model.architecture", "model.n_layer", "model.n_embd",
                        "model.vocab_size", "model.head_size", "model.dim_ffn", "model.rank_w",
                        "model.rank_a", "model.rank_v", "model.rank_g"})
    keys.emplace_back(k);
  return keys;
}

[[noreturn]] void unknown_key(const std::string& key, const std::string& where) {
  std::string nearest;
  size_t best = SIZE_MAX;
  const auto last_part = [](std::string_view s) { return s.substr(s.rfind('.') + 1); };
  const bool section = key.find('.') == std::string::npos;
  const auto consider = [&](const std::string& k) {
    // A right name in the wrong section, or in none, is a likelier slip than its distance says.
    const size_t d = last_part(k) == last_part(key) ? 1
                     : section
                         ? std::min(edit_distance(k, key), 1 + edit_distance(last_part(k), key))
                         : edit_distance(k, key);
    if (d < best) {
      best = d;
      nearest = k;
    }
  };
  for (const auto& k : known_keys()) {
    consider(k);
    if (section) consider(k.substr(0, k.find('.')));
  }
  const bool close = worth_suggesting(best, last_part(key));
  throw ConfigError(str(where, ": unknown key '", key, "'",
                        close ? str("; did you mean '", nearest, "'?") : std::string(),
                        " (--print-config lists all)"));
}

[[noreturn]] void bad_value(const std::string& where, std::string_view key,
                            const std::string& found, const std::string& expected) {
  throw ConfigError(str(where, ": ", key, " is ", found, ", expected ", expected));
}

std::string range_text(const char* what, const detail::FieldRules& r) {
  const auto number = [](double x) {
    return x == std::floor(x) && std::abs(x) < 1e15 ? str(static_cast<int64_t>(x)) : str(x);
  };
  if (r.max >= detail::kMaxCount) return str(what, " of at least ", number(r.min));
  return str(what, " from ", number(r.min), " to ", number(r.max));
}

/// Assigns one JSON value to one field. `raw` is what --set was given, for strings without quotes.
struct Assign {
  const std::string& where;
  const std::string& key;
  const Json& value;
  const std::string* raw;

  void to(int64_t& out, const detail::FieldRules& r) const {
    const std::string expected = range_text("an integer", r);
    if (!value.is_number()) bad_value(where, key, value.dump(), expected);
    // 1e6 is an integer to people, if not to JSON libraries.
    const double x = value.get<double>();
    if (x != std::floor(x) || x < r.min || x > r.max) bad_value(where, key, value.dump(), expected);
    out = value.is_number_integer() ? value.get<int64_t>() : static_cast<int64_t>(x);
  }
  void to(double& out, const detail::FieldRules& r) const {
    const std::string expected = range_text("a number", r);
    if (!value.is_number()) bad_value(where, key, value.dump(), expected);
    const double x = value.get<double>();
    if (!(x >= r.min && x <= r.max)) bad_value(where, key, value.dump(), expected);
    out = x;
  }
  void to(bool& out, const detail::FieldRules&) const {
    if (!value.is_boolean()) bad_value(where, key, value.dump(), "true or false");
    out = value.get<bool>();
  }
  void to(std::string& out, const detail::FieldRules& r) const {
    if (!value.is_string() && raw == nullptr) bad_value(where, key, value.dump(), "a string");
    const std::string text = value.is_string() ? value.get<std::string>() : *raw;
    if (!r.choices.empty() && std::ranges::find(r.choices, text) == r.choices.end()) {
      std::string list;
      for (const auto c : r.choices) list += str(list.empty() ? "" : ", ", "\"", c, "\"");
      bad_value(where, key, "\"" + text + "\"", "one of " + list);
    }
    out = text;
  }
};

Json parse_json(const std::string& text, const std::string& where) {
  RWKV_CHECK(!json_deeper_than(text), ConfigError, "reading ", where,
             ": its JSON is nested too deep; expected sections model, data, train, ...");
  try {
    return Json::parse(text, nullptr, true, /*ignore_comments=*/true);
  } catch (const nlohmann::json::exception& e) {
    throw ConfigError(str("reading ", where, ": not valid JSON: ", e.what()));
  }
}

std::string read_config_file(const std::string& path) {
  try {
    return read_file(path);
  } catch (const IoError& e) {
    throw ConfigError(str("reading the config: ", e.what()));
  }
}

/// Gathers the model's JSON object, which may name a model file, and applies everything else.
class Loader {
 public:
  explicit Loader(TrainConfig& config) : config_(config) {}

  void file(const std::string& text, const std::string& where) {
    const Json root = parse_json(text, where);
    if (!root.is_object())
      throw ConfigError(str("reading ", where, ": found ", root.type_name(),
                            ", expected an object with sections model, data, train, ..."));
    const std::string origin = where.starts_with("preset ") ? where : "file " + where;
    for (const auto& [section, value] : root.items()) {
      if (section == "model") {
        model(value, where, origin);
      } else if (section == "about") {
        // A comment that JSON tools keep.
      } else if (!is_section(section)) {
        unknown_key(section, where);
      } else if (!value.is_object()) {
        bad_value(where, section, value.dump(), "an object");
      } else {
        for (const auto& [key, v] : value.items())
          assign(section + "." + key, v, nullptr, where, origin);
      }
    }
  }

  void setting(const std::string& text) {
    const size_t eq = text.find('=');
    RWKV_CHECK(eq != std::string::npos && eq > 0, ConfigError, "--set ", text,
               ": expected key=value, such as train.steps=100");
    const std::string key = text.substr(0, eq), raw = text.substr(eq + 1);
    Json value = Json::parse(raw, nullptr, /*allow_exceptions=*/false);
    if (value.is_discarded()) value = raw;
    const std::string where = "--set " + key;
    if (key == "model") {
      model(value, where, "--set");
    } else if (key.starts_with("model.")) {
      const auto keys = known_keys();
      if (std::ranges::find(keys, key) == keys.end()) unknown_key(key, where);
      model_[key.substr(6)] = value;
      config_.origin[key] = "--set";
    } else if (is_section(key)) {
      throw ConfigError(str(where, ": that is a section; set one of its keys, such as ", key, ".",
                            first_key(key)));
    } else {
      assign(key, value, &raw, where, "--set");
    }
  }

  void finish(const std::string& where) {
    RWKV_CHECK(!model_.empty(), ConfigError, where,
               ": there is no model; give one as \"model\": {\"n_layer\": ...} or by the name of a "
               "model file, such as \"model\": \"0.1b\"");
    config_.model = parse_model_config(model_.dump(), where);
  }

 private:
  static bool is_section(const std::string& name) {
    return std::ranges::any_of(known_keys(),
                               [&](const std::string& k) { return k.starts_with(name + "."); });
  }
  static std::string first_key(const std::string& section) {
    for (const auto& k : known_keys())
      if (k.starts_with(section + ".")) return k.substr(section.size() + 1);
    return "";
  }

  void model(const Json& value, const std::string& where, const std::string& origin) {
    model_ = Json::object();
    std::erase_if(config_.origin, [](const auto& o) { return o.first.starts_with("model."); });
    if (value.is_object()) {
      for (const auto& [key, v] : value.items()) {
        model_[key] = v;
        config_.origin["model." + key] = origin;
      }
      return;
    }
    if (!value.is_string())
      bad_value(where, "model", value.dump(), "an object or the name of a model file");
    const std::string path = resolve_config_path(value.get<std::string>(), "model");
    const Json j = parse_json(read_config_file(path), path);
    if (!j.is_object()) bad_value(path, "the model", j.dump(), "an object");
    for (const auto& [key, v] : j.items()) {
      if (key == "about") continue;
      model_[key] = v;
      config_.origin["model." + key] = "file " + path;
    }
  }

  void assign(const std::string& key, const Json& value, const std::string* raw,
              const std::string& where, const std::string& origin) {
    bool found = false;
    detail::visit_fields(config_, [&](const char* k, auto& member, const auto& rules, const char*) {
      if (key != k) return;
      found = true;
      Assign{where, key, value, raw}.to(member, rules);
    });
    if (!found) unknown_key(key, where);
    config_.origin[key] = origin;
  }

  TrainConfig& config_;
  Json model_ = Json::object();
};

/// <prefix>/share/greylag/configs beside the running program, if that can be told.
std::optional<fs::path> installed_folder() {
  std::error_code ec;
  const fs::path exe = fs::read_symlink("/proc/self/exe", ec);
  if (ec) return std::nullopt;
  return exe.parent_path().parent_path() / "share" / "greylag" / "configs";
}

/// What RWKV-4's reference recipe has instead of the general defaults (spec rwkv4 8).
void use_recipe(TrainConfig& c) {
  if (c.model.architecture != "rwkv4") return;
  const auto set = [&](const char* key, auto& member, const auto& value) {
    if (c.origin.contains(key)) return;
    member = value;
    c.origin[key] = "default of rwkv4";
  };
  auto& o = c.optimizer;
  set("optimizer.schedule", o.schedule, "exponential");
  set("optimizer.lr_final", o.lr_final, 1e-5);
  set("optimizer.eps", o.eps, 1e-8);
  set("optimizer.weight_decay", o.weight_decay, 0);
}

void check_together(const TrainConfig& c, const std::string& where) {
  RWKV_CHECK(c.optimizer.lr > 0 || c.optimizer.schedule == "exponential", ConfigError, where,
             ": optimizer.lr is 0, expected a positive learning rate");
  const auto& w = c.optimizer.warmup_start;
  RWKV_CHECK(w == -1 || w >= 0, ConfigError, where, ": optimizer.warmup_start is ", w,
             ", expected 0 to 1, or -1 for the architecture's own");
}

}  // namespace

std::vector<std::string> config_folders() {
  std::vector<std::string> folders = {"configs"};
  if (const auto installed = installed_folder()) folders.push_back(installed->string());
  folders.emplace_back(RWKV_CONFIG_SOURCE_DIR);
  return folders;
}

std::string resolve_config_path(const std::string& name, const std::string& subfolder) {
  std::error_code ec;
  if (fs::is_regular_file(name, ec)) return name;
  const bool bare = name.find('/') == std::string::npos;
  std::string there_are, looked_in;
  if (bare) {
    for (const auto& folder : config_folders()) {
      const fs::path dir = subfolder.empty() ? fs::path(folder) : fs::path(folder) / subfolder;
      for (const auto& file : {dir / (name + ".json"), dir / name})
        if (fs::is_regular_file(file, ec)) return file.string();
      looked_in += str(looked_in.empty() ? "" : ", ", dir.string());
      if (!there_are.empty()) continue;
      std::vector<std::string> names;
      for (const auto& entry : fs::directory_iterator(dir, ec))
        if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
      std::ranges::sort(names);
      for (const auto& n : names) there_are += str(there_are.empty() ? "" : ", ", n);
    }
    throw ConfigError(str("looking for config '", name, "': no such file in ", looked_in,
                          there_are.empty() ? "" : "; there are " + there_are));
  }
  throw ConfigError(str("looking for config '", name,
                        "': no such file; give a path, or the bare "
                        "name of one that is installed, such as pile169m"));
}

TrainConfig parse_config(const std::string& json_text, const std::string& where,
                         const std::vector<std::string>& settings) {
  TrainConfig config;
  config.name = fs::path(where).stem().string();
  Loader loader(config);
  loader.file(json_text, where);
  for (const auto& s : settings) loader.setting(s);
  loader.finish(where);
  use_recipe(config);
  check_together(config, where);
  return config;
}

TrainConfig load_config(const std::string& config, const std::vector<std::string>& settings) {
  if (config.empty()) return parse_config("{}", "run", settings);
  const std::string path = resolve_config_path(config, "");
  return parse_config(read_config_file(path), path, settings);
}

bool TrainConfig::set_by_user(std::string_view key) const {
  const auto it = origin.find(std::string(key));
  return it != origin.end() && it->second == "--set";
}

std::string TrainConfig::run_dir() const {
  return checkpoint.dir.empty() ? "runs/" + name : checkpoint.dir;
}

GradCheckpointing TrainConfig::grad_checkpointing() const {
  return train.grad_checkpointing == "block" ? GradCheckpointing::kBlock : GradCheckpointing::kNone;
}

DType TrainConfig::dtype(Device device) const {
  if (kernels.dtype == "f32") return DType::kF32;
  if (kernels.dtype == "bf16") {
    RWKV_CHECK(device == Device::kCuda, ConfigError, "kernels.dtype is bf16 on device ",
               device_name(device), ", which computes in f32 only; use auto or f32");
    return DType::kBF16;
  }
  return device == Device::kCuda ? DType::kBF16 : DType::kF32;
}

Schedule TrainConfig::schedule(int64_t data_tokens) const {
  // The schedule runs over exit_tokens; without them over the steps or epochs that end the run.
  const int64_t per_step = tokens_per_step();
  const auto tokens = [](const char* key, double n) {
    RWKV_CHECK(n < 0x1p62, ConfigError, key, " asks for ", n, " tokens, more than can be counted");
    return static_cast<int64_t>(n);
  };
  int64_t exit = train.exit_tokens;
  if (exit == 0 && train.steps > 0) {
    tokens("train.steps", static_cast<double>(train.steps) * static_cast<double>(per_step));
    exit = train.steps * per_step;
  }
  if (train.epochs > 0 && data_tokens > 0) {
    const auto by_epochs = tokens("train.epochs", train.epochs * static_cast<double>(data_tokens));
    if (exit == 0 || (train.exit_tokens == 0 && by_epochs < exit)) exit = by_epochs;
  }
  RWKV_CHECK(exit > 0, ConfigError, "the config does not say when to stop: set train.steps, ",
             "train.exit_tokens or train.epochs");
  Schedule s;
  s.kind = parse_schedule_kind(optimizer.schedule);
  s.lr = optimizer.lr;
  s.lr_final = optimizer.lr_final;
  s.warmup = optimizer.warmup;
  s.warmup_start = optimizer.warmup_start >= 0     ? optimizer.warmup_start
                   : model.architecture == "rwkv4" ? 0.2
                                                   : 0.01;
  s.decay_part = optimizer.decay_part;
  s.hold = optimizer.hold;
  s.tokens_per_step = per_step;
  s.exit_tokens = exit;
  return s;
}

int64_t TrainConfig::total_steps(int64_t data_tokens) const {
  int64_t steps = schedule(data_tokens).total_steps();
  if (train.steps > 0) steps = std::min(steps, train.steps);
  if (train.epochs > 0 && data_tokens > 0) {
    const double limit = std::ceil(train.epochs * static_cast<double>(data_tokens) /
                                   static_cast<double>(tokens_per_step()));
    steps = std::min(steps, static_cast<int64_t>(limit));
  }
  return std::max<int64_t>(steps, 1);
}

}  // namespace rwkv
