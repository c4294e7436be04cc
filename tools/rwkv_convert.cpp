// rwkv-convert: model files into those of other programs and back. See docs/formats.md.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "data/io/atomic_file.h"
#include "data/tokenizer/world_tokenizer.h"
#include "inference/gguf_vocabulary.h"
#include "inference/load.h"
#include "model/model_export.h"
#include "tools/cli_common.h"
#include "tools/convert_report.h"

namespace {

using namespace rwkv;
namespace fs = std::filesystem;

struct Flags {
  std::string in, out, to, dtype, vocab, inspect;
  bool dry_run = false;
};

/// Where to and in which format; a folder is a transformers folder.
struct Target {
  TensorFormat format;
  std::string file;
  bool folder = false;
};

Target target_of(const Flags& f) {
  static const std::map<std::string, TensorFormat, std::less<>> kFormats = {
      {"h5", TensorFormat::kHdf5},   {"hdf5", TensorFormat::kHdf5},
      {"pth", TensorFormat::kPth},   {"safetensors", TensorFormat::kSafetensors},
      {"gguf", TensorFormat::kGguf}, {"hf", TensorFormat::kSafetensors}};
  std::error_code ec;
  const fs::path out(f.out);
  std::string name = f.to;
  if (name.empty()) {
    const bool folder = fs::is_directory(out, ec) || out.filename().empty();
    name = folder ? "hf" : out.extension().empty() ? "" : out.extension().string().substr(1);
  }
  const auto it = kFormats.find(name);
  RWKV_CHECK(it != kFormats.end(), ConfigError, "writing ", f.out,
             ": its ending says no known format; expected .h5, .pth, .safetensors or .gguf, a "
             "folder, or --to");
  if (name != "hf") return {it->second, f.out};
  return {it->second, (out / "model.safetensors").string(), true};
}

std::optional<TensorType> type_of(const std::string& dtype) {
  if (dtype.empty()) return std::nullopt;
  if (dtype == "bf16") return TensorType::kBF16;
  if (dtype == "fp16" || dtype == "f16") return TensorType::kF16;
  return dtype == "fp32" || dtype == "f32" ? TensorType::kF32 : TensorType::kQ8_0;
}

TokenizerBlob blob_of(const Tokenizer& t) {
  const std::string_view v = t.vocabulary();
  return {std::string(t.name()), t.hash(), {v.begin(), v.end()}};
}

int convert(const Flags& f) {
  RWKV_CHECK(!f.in.empty() && !f.out.empty(), ConfigError,
             "give a file to read and one to write, or --inspect FILE; try --help");
  const ModelFile model = ModelFile::open(resolve_model(f.in));
  const auto tokenizer = find_tokenizer(model, f.vocab);
  const Target target = target_of(f);
  ExportOptions options{.to = target.format, .type = type_of(f.dtype)};
  if (tokenizer != nullptr) options.tokenizer = blob_of(*tokenizer);
  if (target.format == TensorFormat::kGguf)
    options.gguf_keys = gguf_tokenizer_keys(tokenizer.get(), model.config().vocab_size);
  std::fprintf(stderr, "%s\ntokenizer: %s\n", model_line(model.config()).c_str(),
               tokenizer == nullptr ? "none found; --vocab FILE adds one"
                                    : std::string(tokenizer->name()).c_str());
  if (target.format == TensorFormat::kGguf && tokenizer != nullptr && tokenizer->name() == "neox")
    std::fprintf(stderr,
                 "note: llama.cpp normalises no text (NFC) and has other Unicode tables: "
                 "a few texts get other tokens there\n");
  if (f.dry_run) {
    std::fputs(export_table(plan_export(model, options)).c_str(), stdout);
    return 0;
  }
  if (tokenizer != nullptr)
    std::fputs(tokenizer_note(target.format, target.folder, tokenizer->name()).c_str(), stderr);
  std::optional<NewFolder> folder_made;
  if (target.folder) folder_made.emplace(target.file);
  std::vector<std::string> written;
  {
    ProgressLine progress("writing, bytes");
    options.progress = std::ref(progress);
    written = export_model(model, target.file, options);
  }
  if (target.folder && tokenizer != nullptr && !tokenizer->vocabulary().empty()) {
    const fs::path folder = fs::path(target.file).parent_path();
    const bool world = tokenizer->name() == "world";
    written.push_back(
        (folder / (world ? std::string(kWorldVocabularyFile) : "20B_tokenizer.json")).string());
    write_file_atomic(written.back(), tokenizer->vocabulary());
  }
  for (const std::string& file : written) std::fprintf(stderr, "wrote %s\n", file.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Converts models between HDF5, .pth, safetensors and GGUF.", "rwkv-convert");
  Flags f;
  app.add_option("IN", f.in, "model file, checkpoint, run folder or transformers folder");
  app.add_option("OUT", f.out, "file or folder to write; its ending says the format");
  app.add_option("--to", f.to, "the format, whatever the ending")
      ->check(CLI::IsMember({"h5", "pth", "safetensors", "hf", "gguf"}));
  app.add_option("--dtype", f.dtype, "type of the values (default: as they are stored)")
      ->check(CLI::IsMember({"fp32", "f32", "bf16", "fp16", "f16", "q8_0"}));
  app.add_option("--vocab", f.vocab, kVocabHelp);
  app.add_flag("--dry-run", f.dry_run, "print the table of tensors, write nothing");
  auto* inspect =
      app.add_option("--inspect", f.inspect, "print what is in a file: header, tensors, model");
  for (const char* other : {"IN", "OUT", "--to", "--dtype", "--vocab", "--dry-run"})
    inspect->excludes(other);
  return run_program(app, argc, argv, [&] {
    if (f.inspect.empty()) return convert(f);
    std::fputs(inspection(*open_tensor_file(resolve_model(f.inspect))).c_str(), stdout);
    return 0;
  });
}
