#pragma once
/// What rwkv-convert prints.

#include <string>
#include <string_view>

#include "data/io/tensor_file.h"
#include "model/model_export.h"

namespace rwkv {

/// Header, tensors with types and sizes, and what model they make up, or why none.
std::string inspection(const TensorFile& file);
/// The table of --dry-run: what would be written, made of what.
std::string export_table(const std::vector<ExportTensor>& plan);
/// What becomes of the tokenizer in a format that cannot hold it; empty for the others.
std::string tokenizer_note(TensorFormat format, bool folder, std::string_view name);
/// "rwkv7, 12 layers, width 768, ..., 191,034,624 parameters"
std::string model_line(const ModelConfig& config);

}  // namespace rwkv
