#pragma once
/// Writes models into the files that other programs read, tensor by tensor.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/io/gguf.h"
#include "model/model_file.h"

namespace rwkv {

struct ExportOptions {
  TensorFormat to = TensorFormat::kHdf5;
  /// Type of the values; none: as they are stored (f64, integers and q8_0: f32). HDF5 holds f32
  /// only; kQ8_0 is for GGUF, where vectors, norms and low-rank matrices are f32 in any case.
  std::optional<TensorType> type;
  /// HDF5: stored with the model, unless it has no name; safetensors: name and hash are.
  TokenizerBlob tokenizer;
  /// GGUF: the keys tokenizer.* (inference/gguf_vocabulary.h).
  std::vector<std::pair<std::string, GgufValue>> gguf_keys;
  /// Bytes of output so far and in all.
  std::function<void(int64_t done, int64_t total)> progress;
};

/// One tensor of the file to be written.
struct ExportTensor {
  TensorPlan plan;
  std::vector<std::string> from;  ///< our tensors, stacked; empty: zeros
  Change change = Change::kNone;
};

/// What export_model writes, in its order. Throws ConfigError for combinations that do not exist.
std::vector<ExportTensor> plan_export(const ModelFile& model, const ExportOptions& options);

/// Writes `path`: an HDF5, .pth, .safetensors or .gguf file, complete or not at all; for
/// safetensors also config.json beside it. `path` must not be the model's own file.
/// A config.json of something else or of another model is not replaced, except that the one beside
/// a file called model.safetensors may be any RWKV model's: such a folder holds one model.
/// Returns the paths of the files written.
/// Names: HDF5 and .pth ours, safetensors fla's (RWKV-7) or transformers' (RWKV-4).
/// Throws ConfigError for combinations that do not exist and for values beyond the range of f16,
/// IoError.
std::vector<std::string> export_model(const ModelFile& model, const std::string& path,
                                      const ExportOptions& options);

}  // namespace rwkv
