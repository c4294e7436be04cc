#pragma once
/// Opens model files and training checkpoints for inference.

#include <memory>
#include <string>

#include "data/tokenizer/tokenizer.h"
#include "model/model_file.h"
#include "model/params.h"
#include "model/rwkv.h"

namespace rwkv {

/// A model with its weights and, if the file names one, its tokenizer. Move-only; the addresses of
/// model and weights stay, so an Engine may refer to them as long as this lives.
struct LoadedModel {
  std::unique_ptr<Model> model;
  std::unique_ptr<ParamStore> weights;
  std::shared_ptr<const Tokenizer> tokenizer;  ///< null if the file has none and none was given
  std::string path;

  /// Throws ConfigError that says how to give one if there is no tokenizer.
  const Tokenizer& need_tokenizer() const;
};

/// Reads any file that ModelFile opens: our own models and checkpoints, .pth, safetensors and
/// transformers folders, GGUF. `vocab` as for find_tokenizer.
/// Throws IoError for missing, foreign, truncated or corrupt files, for a vocabulary that is not
/// the one the model was trained with, and for one with more ids than the model has rows.
LoadedModel load_model(const std::string& path, const std::string& vocab = "");

/// The tokenizer of a model file: the one in it, if its format has any (HDF5, GGUF); the one that
/// it names (safetensors that we wrote), with the vocabulary in its folder or the user's cache;
/// else a vocabulary with the published name in its folder (World, else NeoX); else, for a model
/// with the rows of the published World models, the World vocabulary of the user's cache; else
/// null. `vocab`, unless empty, is a vocabulary file to use, or "bytes" for the tokenizer that has
/// none: for files without one, and as a check for files that say which one they need. Throws as
/// load_model.
std::shared_ptr<const Tokenizer> find_tokenizer(const ModelFile& file, const std::string& vocab);

}  // namespace rwkv
