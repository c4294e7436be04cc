#include "model/weights.h"

#include <cmath>

#include "data/io/crc32.h"
#include "data/io/hdf5_file.h"

namespace rwkv {
namespace {

constexpr const char* kFormat = "greylag-model 1";
constexpr int64_t kMaxVocabularyBytes = int64_t{32} << 20;  // many times the longest published one

Shape shape_of(const TensorSpec& spec) {
  return Shape(spec.dim.begin(), spec.dim.begin() + spec.rank);
}

std::span<float> elements(const TensorView& v) {
  return {v.f32(), static_cast<size_t>(v.numel())};
}

/// v0, v1 and v2 of the first layer are in the reference trainer's files and never used.
bool unused_by_design(std::string_view name) {
  return name == "blocks.0.att.v0" || name == "blocks.0.att.v1" || name == "blocks.0.att.v2";
}

}  // namespace

void write_param_group(Hdf5File& file, const std::string& group, const ParamRegistry& params,
                       const ParamStore& store) {
  for (size_t i = 0; i < params.size(); ++i) {
    const TensorView v = store[static_cast<ParamId>(i)];
    const std::string name = group + "/" + params.specs()[i].name;
    const std::span<const float> values = elements(v);
    file.write<float>(name, shape_of(v.spec), values);
    file.write_attr(name, "crc32", crc32_of(values));
  }
}

void read_param_group(const Hdf5File& file, const std::string& group, const ParamRegistry& params,
                      ParamStore& store) {
  for (size_t i = 0; i < params.size(); ++i) {
    const TensorView v = store[static_cast<ParamId>(i)];
    const std::string name = group + "/" + params.specs()[i].name;
    RWKV_CHECK(file.exists(name), IoError, "loading ", name, " from ", file.path(),
               ": there is no such dataset; is the file complete, and does the model config fit?");
    file.read_into<float>(name, shape_of(v.spec), elements(v));
    const std::span<const float> values = elements(v);
    if (file.has_attr(name, "crc32"))
      RWKV_CHECK(static_cast<uint32_t>(file.attr_int(name, "crc32")) == crc32_of(values), IoError,
                 "loading ", name, " from ", file.path(),
                 ": the checksum does not match: the file is corrupt; use another copy");
    for (const float x : values)
      RWKV_CHECK(std::isfinite(x), IoError, "loading ", name, " from ", file.path(),
                 ": it holds NaN or infinite values; use an earlier checkpoint");
  }
}

void write_model_header(Hdf5File& file, const ModelConfig& config, const TokenizerBlob& tokenizer) {
  file.write_string("model/format", kFormat);
  file.write_string("model/config", model_config_json(config));
  if (!tokenizer.name.empty()) {
    file.write_string("tokenizer/name", tokenizer.name);
    file.write_string("tokenizer/hash", tokenizer.hash);
    if (!tokenizer.blob.empty())
      file.write<uint8_t>("tokenizer/blob", {static_cast<int64_t>(tokenizer.blob.size())},
                          tokenizer.blob, {.deflate = 6});
  }
}

void write_weight(Hdf5File& file, const std::string& name, const std::vector<int64_t>& shape,
                  std::span<const float> values) {
  const std::string path = "weights/" + name;
  file.write<float>(path, shape, values);
  file.write_attr(path, "crc32", crc32_of(values));
}

void write_model(Hdf5File& file, const ModelConfig& config, const ParamRegistry& params,
                 const ParamStore& values, const TokenizerBlob& tokenizer) {
  write_model_header(file, config, tokenizer);
  write_param_group(file, "weights", params, values);
}

ModelConfig read_model_config(const Hdf5File& file) {
  RWKV_CHECK(file.exists("model/format") && file.exists("model/config"), IoError, "opening ",
             file.path(), ": not a Greylag model file (no /model/format); expected a checkpoint ",
             "written by rwkv-train");
  const std::string format = file.read_string("model/format");
  RWKV_CHECK(format == kFormat, IoError, "opening ", file.path(), ": format '", format,
             "', this version reads '", kFormat, "'");
  try {
    return parse_model_config(file.read_string("model/config"), file.path());
  } catch (const ConfigError& e) {
    throw IoError(str("opening ", file.path(), ": ", e.what()));
  }
}

TokenizerBlob read_tokenizer(const Hdf5File& file) {
  TokenizerBlob t;
  if (!file.exists("tokenizer/name")) return t;
  t.name = file.read_string("tokenizer/name");
  t.hash = file.read_string("tokenizer/hash");
  if (file.exists("tokenizer/blob")) {
    // Compressed, and so not bounded by the file.
    const int64_t bytes = file.numel("tokenizer/blob");
    RWKV_CHECK(bytes <= kMaxVocabularyBytes, IoError, "opening ", file.path(), ": ", bytes,
               " bytes are no vocabulary; the file is damaged");
    t.blob = file.read<uint8_t>("tokenizer/blob");
  }
  return t;
}

void read_weights(const Hdf5File& file, const ParamRegistry& params, ParamStore& values) {
  for (const std::string& name : file.list_datasets("weights"))
    RWKV_CHECK(params.find(name) || unused_by_design(name), IoError, "loading ", file.path(),
               ": weights/", name, " is not a tensor of this model");
  read_param_group(file, "weights", params, values);
}

}  // namespace rwkv
