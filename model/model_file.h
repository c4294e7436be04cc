#pragma once
/// Model files of any kind that this project reads, as one: our HDF5, .pth, safetensors and
/// transformers folders, GGUF. Recognised by content; names, orientation and missing pieces are
/// translated to ours, and everything is checked against the sizes that the tensors imply.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/io/tensor_file.h"
#include "model/config.h"
#include "model/rwkv.h"
#include "model/tensor_names.h"
#include "model/weights.h"

namespace rwkv {

struct ModelTensor {
  std::string name;   ///< ours
  Shape shape;        ///< ours
  TensorType stored;  ///< type in the file
};

/// Keys of a safetensors file's metadata that say which tokenizer the model needs, if we wrote it.
inline constexpr std::string_view kTokenizerKey = "greylag.tokenizer";
inline constexpr std::string_view kTokenizerHashKey = "greylag.tokenizer_sha256";

class ModelFile {
 public:
  /// Throws IoError: unreadable, damaged, another architecture or variant (named), tensors that are
  /// missing, too many or do not fit together.
  static ModelFile open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  const TensorFile& file() const { return *file_; }
  TensorFormat format() const { return file_->format(); }
  Layout layout() const { return layout_; }
  const ModelConfig& config() const { return config_; }
  /// What an HDF5 file holds; of safetensors files that we wrote name and hash; no name for the
  /// others (GGUF: see inference/gguf_vocabulary.h).
  const TokenizerBlob& tokenizer() const { return tokenizer_; }

  /// In the order of the model's parameters, then layer 0's unused v0, v1, v2 if the file has them.
  std::span<const ModelTensor> tensors() const { return tensors_; }
  /// Throws IoError for damage and for values that are not finite.
  void read(size_t index, std::span<float> out) const;
  /// All weights. `params` is that of make_model(config()). Throws as `read`.
  void read_all(const ParamRegistry& params, ParamStore& values) const;

 private:
  struct Source {
    size_t tensor;  ///< of file_
    Change change = Change::kNone;
    int64_t part = 0, parts = 1;  ///< of a stack
  };
  struct Opening;
  ModelFile() = default;

  std::unique_ptr<TensorFile> file_;
  Layout layout_ = Layout::kBlinkDl;
  ModelConfig config_;
  TokenizerBlob tokenizer_;
  std::vector<ModelTensor> tensors_;
  std::vector<Source> sources_;
};

/// A model with its weights. Move-only; the addresses stay.
struct OpenedModel {
  std::unique_ptr<Model> model;
  std::unique_ptr<ParamStore> weights;  ///< in host memory
};
/// Everything in a file, whatever its kind. Throws as ModelFile.
OpenedModel open_model(const ModelFile& file);

/// (a, b) values as (b, a).
void transpose(std::span<const float> in, int64_t a, int64_t b, std::span<float> out);

}  // namespace rwkv
