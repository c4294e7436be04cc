#include "tools/convert_report.h"

#include <algorithm>
#include <cstdio>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

/// Text from a file for a terminal: no control characters, not too long.
std::string shown(std::string_view text, size_t most = 100) {
  std::string s(text.substr(0, most));
  for (char& c : s)
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = ' ';
  if (text.size() > most) s += str("... (", text.size(), " bytes)");
  return s;
}

std::string row(std::string_view name, const Shape& shape, std::string_view type, uint64_t bytes) {
  char line[256];
  std::snprintf(line, sizeof line, "  %-44s %-20s %-6s %14llu", shown(name, 120).c_str(),
                shape_string(shape).c_str(), std::string(type).c_str(),
                static_cast<unsigned long long>(bytes));
  return line;
}

std::string joined(const std::vector<std::string>& names) {
  std::string s;
  for (const std::string& n : names) s += (s.empty() ? "" : ", ") + n;
  return s;
}

}  // namespace

std::string model_line(const ModelConfig& c) {
  std::string s = str(c.architecture, ", ", c.n_layer, " layers, width ", c.n_embd,
                      ", channel mix ", c.dim_ffn, ", ", c.vocab_size, " rows");
  if (c.architecture == "rwkv7")
    s += str(", heads of ", c.head_size, ", low ranks w ", c.rank_w, " a ", c.rank_a, " v ",
             c.rank_v, " g ", c.rank_g);
  return s + str(", ", count_parameters(c).used, " parameters");
}

std::string inspection(const TensorFile& file) {
  std::string out = str(file.path(), ": ", tensor_format_name(file.format()), ", ",
                        file.file_bytes(), " bytes, ", file.tensors().size(), " tensors\n");
  for (const auto& [key, value] : file.header())
    out += str("  ", shown(key), ": ", shown(value), "\n");
  for (const std::string& note : file.notes()) out += str("  note: ", shown(note), "\n");
  out += "tensors (name, shape, type, bytes)\n";
  for (const TensorInfo& t : file.tensors())
    out += row(t.name, t.shape, t.type_name, t.stored_bytes) + "\n";
  try {
    const ModelFile model = ModelFile::open(file.path());
    out += str("model: ", model_line(model.config()), "; ", layout_name(model.layout()),
               " names\nas the \"model\" of a config: ", model_config_json(model.config()), "\n");
    if (!model.tokenizer().name.empty()) out += str("tokenizer: ", model.tokenizer().name, "\n");
  } catch (const Error& e) {
    out += str("model: none that this version runs: ", shown(e.what(), 500), "\n");
  }
  return out;
}

std::string tokenizer_note(TensorFormat format, bool folder, std::string_view name) {
  const bool bytes = name == "bytes";
  if (format == TensorFormat::kPth)
    return str("note: .pth has no place for a tokenizer: programs that read the file need --vocab ",
               bytes ? "bytes" : str("FILE, the vocabulary of ", name), "\n");
  if (format == TensorFormat::kSafetensors && !folder && !bytes)
    return str("note: the file names its tokenizer, ", name,
               ", but has no vocabulary: put that "
               "beside it, or convert to a folder\n");
  return "";
}

std::string export_table(const std::vector<ExportTensor>& plan) {
  std::string out = "tensors (name, shape, type, bytes, made of)\n";
  uint64_t total = 0;
  for (const ExportTensor& t : plan) {
    const uint64_t bytes =
        tensor_bytes(t.plan.type, static_cast<uint64_t>(shape_numel(t.plan.shape)));
    total += bytes;
    out += row(t.plan.name, t.plan.shape, tensor_type_name(t.plan.type), bytes);
    out += str("  ", t.from.empty() ? "zeros, unused by the model" : joined(t.from),
               t.change == Change::kTranspose ? ", transposed" : "", "\n");
  }
  return out + str(plan.size(), " tensors, ", total, " bytes\n");
}

}  // namespace rwkv
