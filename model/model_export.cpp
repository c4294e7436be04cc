#include "model/model_export.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "data/io/atomic_file.h"
#include "data/io/hdf5_file.h"
#include "data/io/seal.h"
#include "model/hf_config.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

constexpr float kMaxF16 = 65504;

Layout layout_for(TensorFormat format, const ModelConfig& config) {
  const bool v4 = config.architecture == "rwkv4";
  switch (format) {
    case TensorFormat::kSafetensors:
      return v4 ? Layout::kHf4 : Layout::kFla;
    case TensorFormat::kGguf:
      RWKV_CHECK(!v4, ConfigError,
                 "writing GGUF: llama.cpp has no RWKV-4, so there is no such file; write .pth or "
                 "safetensors");
      return Layout::kGguf;
    default:
      return Layout::kBlinkDl;
  }
}

/// Where a type is to be kept, others than the float types become f32.
TensorType kept(TensorType stored) {
  return stored == TensorType::kF16 || stored == TensorType::kBF16 ? stored : TensorType::kF32;
}

/// The matrices that llama.cpp multiplies with in any type; everything else it wants in f32.
bool is_large(std::string_view name, const Shape& shape) {
  return shape.size() == 2 && name.ends_with(".weight");  // low-rank ones are called w1, w2, ...
}

class Planner {
 public:
  Planner(const ModelFile& model, const ExportOptions& options)
      : model_(model), options_(options), layout_(layout_for(options.to, model.config())) {
    const auto type = options.type;
    RWKV_CHECK(options.to != TensorFormat::kHdf5 || !type || *type == TensorType::kF32, ConfigError,
               "writing HDF5: our model files hold fp32 only; leave --dtype out");
    RWKV_CHECK(options.to == TensorFormat::kGguf || type != TensorType::kQ8_0, ConfigError,
               "q8_0 is a type of GGUF; ", tensor_format_name(options.to),
               " takes fp32, bf16 or fp16");
    for (const NameRule& r : name_rules(layout_)) rules_[std::string(r.ours)] = &r;
  }

  std::vector<ExportTensor> run() {
    const auto tensors = model_.tensors();
    for (const ModelTensor& t : tensors) {
      if (is_unused(t.name) && layout_ != Layout::kBlinkDl) continue;  // fla has none; GGUF below
      if (layout_ == Layout::kGguf && add_to_stack(t)) continue;
      add(t.name, t.shape, {t.name}, type_of(t.name, t.shape, t.stored));
      // Readers want layer 0's unused tensors: the reference's loader all three, llama.cpp too.
      if (t.name == "blocks.0.att.a2") add_unused(t.stored);
    }
    if (options_.to == TensorFormat::kSafetensors)
      std::ranges::sort(out_, {}, [](const ExportTensor& t) {
        return std::pair(-static_cast<int64_t>(tensor_bytes(t.plan.type, 1)), t.plan.name);
      });
    return std::move(out_);
  }

 private:
  static bool is_unused(std::string_view name) {
    return name == "blocks.0.att.v0" || name == "blocks.0.att.v1" || name == "blocks.0.att.v2";
  }

  TensorType type_of(const std::string& name, const Shape& shape, TensorType stored) const {
    if (options_.to == TensorFormat::kHdf5) return TensorType::kF32;
    if (options_.to == TensorFormat::kGguf && !is_large(name, shape)) return TensorType::kF32;
    return options_.type.value_or(kept(stored));
  }

  void add(const std::string& ours, const Shape& shape, std::vector<std::string> from,
           TensorType type) {
    ExportTensor t{{ours, shape, type}, std::move(from), Change::kNone};
    if (layout_ != Layout::kBlinkDl) {
      const auto split = split_layer(ours);
      auto rule = rules_.find(ours);
      if (rule == rules_.end()) rule = rules_.find(split->pattern);
      RWKV_ASSERT(rule != rules_.end(), ours, " has no name in layout ", layout_name(layout_));
      t.plan.name = join_layer(rule->second->theirs, split->layer);
      t.change = rule->second->change;
      if (t.change == Change::kTranspose) std::swap(t.plan.shape[0], t.plan.shape[1]);
      if (t.change == Change::kFlatten) t.plan.shape = {shape_numel(shape)};
      // q8_0 works on blocks of 32 in a row.
      if (type == TensorType::kQ8_0 && t.plan.shape.back() % kQ8Block != 0)
        t.plan.type = TensorType::kF16;
    }
    out_.push_back(std::move(t));
  }

  bool add_to_stack(const ModelTensor& t) {
    const auto names = stacked_names();
    const auto split = split_layer(t.name);
    const auto at = std::ranges::find(names, split->pattern);
    if (at == names.end()) return false;
    if (at != names.begin()) return true;  // the first one stands for all
    ExportTensor stack{{join_layer(stack_name(layout_), split->layer),
                        {static_cast<int64_t>(names.size()), 1, 1, model_.config().n_embd},
                        TensorType::kF32},
                       {},
                       Change::kNone};
    for (const std::string_view n : names) stack.from.push_back(join_layer(n, split->layer));
    out_.push_back(std::move(stack));
    return true;
  }

  void add_unused(TensorType stored) {
    const ModelConfig& c = model_.config();
    const bool has = std::ranges::any_of(model_.tensors(),
                                         [](const ModelTensor& t) { return is_unused(t.name); });
    const TensorType type = type_of("blocks.0.att.v0", {1, 1, c.n_embd}, stored);
    if (layout_ == Layout::kGguf) {
      // The loader expects them with the rank of a there.
      add("blocks.0.att.v0", {1, 1, c.n_embd}, {}, type);
      add("blocks.0.att.v1", {c.n_embd, c.rank_a}, {}, type);
      add("blocks.0.att.v2", {c.rank_a, c.n_embd}, {}, type);
    } else if (options_.to == TensorFormat::kPth && !has) {
      add("blocks.0.att.v0", {1, 1, c.n_embd}, {}, type);
      add("blocks.0.att.v1", {c.n_embd, c.rank_v}, {}, type);
      add("blocks.0.att.v2", {c.rank_v, c.n_embd}, {}, type);
    }
  }

  const ModelFile& model_;
  const ExportOptions& options_;
  Layout layout_;
  std::map<std::string, const NameRule*, std::less<>> rules_;
  std::vector<ExportTensor> out_;
};

uint64_t plan_bytes(const std::vector<ExportTensor>& plan) {
  uint64_t bytes = 0;
  for (const ExportTensor& t : plan)
    bytes += tensor_bytes(t.plan.type, static_cast<uint64_t>(shape_numel(t.plan.shape)));
  return bytes;
}

/// Reads what each tensor consists of, changes it, and hands it to `write`.
template <class Write>
void stream(const ModelFile& model, const std::vector<ExportTensor>& plan,
            const ExportOptions& options, const Write& write) {
  std::map<std::string, size_t, std::less<>> index;
  for (size_t i = 0; i < model.tensors().size(); ++i) index[model.tensors()[i].name] = i;
  uint64_t done = 0;
  const uint64_t total = plan_bytes(plan);
  std::vector<float> values, ours;
  for (const ExportTensor& t : plan) {
    values.assign(static_cast<size_t>(shape_numel(t.plan.shape)), 0.0f);
    std::span<float> rest = values;
    for (const std::string& name : t.from) {
      const auto part = rest.first(values.size() / t.from.size());
      const size_t i = index.at(name);
      if (t.change == Change::kTranspose) {
        ours.resize(part.size());
        model.read(i, ours);
        transpose(ours, t.plan.shape[1], t.plan.shape[0], part);
      } else {
        model.read(i, part);
      }
      rest = rest.subspan(part.size());
    }
    if (t.plan.type == TensorType::kF16)
      for (const float x : values)
        RWKV_CHECK(std::fabs(x) <= kMaxF16, ConfigError, "writing ", t.plan.name, " as fp16: ", x,
                   " is beyond its range of 65504; use bf16 or fp32");
    if (t.plan.type == TensorType::kQ8_0)
      for (const float x : values)
        RWKV_CHECK(std::fabs(x) <= 127 * kMaxF16, ConfigError, "writing ", t.plan.name,
                   " as q8_0: ", x, " is beyond the range of its scales; use bf16 or fp32");
    write(t, std::span<const float>(values));
    done += tensor_bytes(t.plan.type, values.size());
    if (options.progress) options.progress(static_cast<int64_t>(done), static_cast<int64_t>(total));
  }
}

void export_hdf5(const ModelFile& model, const std::string& path,
                 const std::vector<ExportTensor>& plan, const ExportOptions& options) {
  AtomicFile out(path);
  Hdf5File file = Hdf5File::create(out.temp_path());
  file.write_attr("", kSealedAttribute, 1);
  write_model_header(file, model.config(), options.tokenizer);
  stream(model, plan, options, [&](const ExportTensor& t, std::span<const float> values) {
    write_weight(file, t.plan.name, t.plan.shape, values);
  });
  file.close();
  seal_hdf5(out.temp_path());
  out.commit();
}

std::vector<std::pair<std::string, GgufValue>> gguf_header(const ModelFile& model,
                                                           const ExportOptions& options,
                                                           const std::vector<ExportTensor>& plan) {
  const ModelConfig& c = model.config();
  const auto u32 = [](int64_t n) { return static_cast<uint32_t>(n); };
  TensorType large = TensorType::kF32;
  for (const ExportTensor& t : plan)
    if (t.plan.name == "blk.0.time_mix_key.weight") large = t.plan.type;
  // llama.cpp's numbers for "mostly of this type".
  const uint32_t file_type = large == TensorType::kF16    ? 1
                             : large == TensorType::kQ8_0 ? 7
                             : large == TensorType::kBF16 ? 32
                                                          : 0;
  std::vector<std::pair<std::string, GgufValue>> keys = {
      {"general.architecture", std::string("rwkv7")},
      {"general.name", fs::path(model.path()).stem().string()},
      {"general.file_type", file_type},
      {"rwkv7.context_length", uint32_t{1048576}},
      {"rwkv7.embedding_length", u32(c.n_embd)},
      {"rwkv7.block_count", u32(c.n_layer)},
      {"rwkv7.feed_forward_length", u32(c.dim_ffn)},
      {"rwkv7.wkv.head_size", u32(c.head_size)},
      {"rwkv7.attention.head_count", uint32_t{0}},
      {"rwkv7.attention.layer_norm_epsilon", 1e-5f},
      {"rwkv7.attention.decay_lora_rank", u32(c.rank_w)},
      {"rwkv7.attention.iclr_lora_rank", u32(c.rank_a)},
      {"rwkv7.attention.value_residual_mix_lora_rank", u32(c.rank_v)},
      {"rwkv7.attention.gate_lora_rank", u32(c.rank_g)},
      {"rwkv7.token_shift_count", uint32_t{2}},
  };
  keys.insert(keys.end(), options.gguf_keys.begin(), options.gguf_keys.end());
  return keys;
}

std::vector<std::pair<std::string, std::string>> metadata_of(const TokenizerBlob& tokenizer) {
  if (tokenizer.name.empty()) return {};
  return {{std::string(kTokenizerKey), tokenizer.name},
          {std::string(kTokenizerHashKey), tokenizer.hash}};
}

/// Refuses to replace a config.json that somebody still needs.
void check_old_config(const fs::path& file, const std::string& path, const ModelConfig& config) {
  std::error_code ec;
  if (!fs::exists(file, ec)) return;
  const std::string old = read_file(file.string());
  for (const TensorType type : {TensorType::kF32, TensorType::kBF16, TensorType::kF16})
    if (old == hf_config_json(config, type)) return;
  std::optional<HfConfig> hf;
  try {
    hf = read_hf_config(path);
  } catch (const IoError&) {  // none that can be read, so none of ours
  }
  const bool rwkv = hf && (hf->model_type == "rwkv" || hf->model_type == "rwkv7");
  if (rwkv && fs::path(path).filename() == "model.safetensors") return;
  throw ConfigError(str("writing ", path, ": ", file.string(), " would be written too, but the ",
                        "one that is there ",
                        rwkv ? "describes another model, or was not written by this program"
                             : "is not that of an RWKV model",
                        "; give a folder for this model alone, as in rwkv-convert IN FOLDER/"));
}

}  // namespace

std::vector<ExportTensor> plan_export(const ModelFile& model, const ExportOptions& options) {
  return Planner(model, options).run();
}

std::vector<std::string> export_model(const ModelFile& model, const std::string& path,
                                      const ExportOptions& options) {
  std::error_code ec;
  const bool same_folder = fs::is_directory(model.path(), ec) &&
                           fs::equivalent(fs::absolute(path).parent_path(), model.path(), ec);
  RWKV_CHECK(!fs::equivalent(path, model.path(), ec) && !same_folder, ConfigError, "writing ", path,
             ": that is where the model is read from; give another name");
  const std::vector<ExportTensor> plan = plan_export(model, options);
  if (options.to == TensorFormat::kHdf5) {
    export_hdf5(model, path, plan, options);
    return {path};
  }
  const fs::path config = fs::path(path).parent_path() / "config.json";
  if (options.to == TensorFormat::kSafetensors) check_old_config(config, path, model.config());
  std::vector<TensorPlan> tensors;
  for (const ExportTensor& t : plan) tensors.push_back(t.plan);
  std::unique_ptr<TensorWriter> out;
  if (options.to == TensorFormat::kPth)
    out = create_pth(path, std::move(tensors));
  else if (options.to == TensorFormat::kSafetensors)
    out = create_safetensors(path, std::move(tensors), metadata_of(options.tokenizer));
  else
    out = create_gguf(path, gguf_header(model, options, plan), std::move(tensors));
  stream(model, plan, options,
         [&](const ExportTensor&, std::span<const float> values) { out->write(values); });
  out->finish();
  if (options.to != TensorFormat::kSafetensors) return {path};
  const auto head = std::ranges::find_if(plan, [](const ExportTensor& t) {
    return t.from == std::vector<std::string>{"head.weight"};
  });
  write_file_atomic(config.string(), hf_config_json(model.config(), head->plan.type));
  return {path, config.string()};
}

}  // namespace rwkv
