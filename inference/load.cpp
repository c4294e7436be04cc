#include "inference/load.h"

#include <filesystem>

#include "data/tokenizer/world_tokenizer.h"
#include "inference/gguf_vocabulary.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kWorldRows = 65536;
constexpr std::string_view kBytes = "bytes";
constexpr const char* kNeoxVocabularyFile = "20B_tokenizer.json";

/// Files that name a tokenizer without its vocabulary; null if that is not found.
std::shared_ptr<const Tokenizer> named_tokenizer(const ModelFile& file) {
  std::error_code ec;
  const fs::path path = file.path();
  const fs::path beside = fs::is_directory(path, ec) ? path / "model.safetensors" : path;
  try {
    return load_tokenizer(file.tokenizer().name, {.beside = beside.string()});
  } catch (const IoError&) {
    return nullptr;  // token ids work without; texts will ask for it
  } catch (const ConfigError& e) {
    throw IoError(str("opening ", file.path(), ": ", e.what()));
  }
}

/// Files without a tokenizer: a vocabulary that the user put beside it, or the likely one.
std::shared_ptr<const Tokenizer> guess_tokenizer(const ModelFile& file) {
  std::error_code ec;
  const bool folder = fs::is_directory(file.path(), ec);
  const fs::path beside = folder ? fs::path(file.path()) : fs::path(file.path()).parent_path();
  for (const std::string_view name : {kWorldVocabularyFile, std::string_view(kNeoxVocabularyFile)})
    if (const fs::path vocabulary = beside / name; fs::is_regular_file(vocabulary, ec))
      return load_tokenizer("auto", {.file = vocabulary.string()});
  if (file.config().vocab_size != kWorldRows) return nullptr;
  try {
    return load_tokenizer("world");
  } catch (const IoError&) {
    return nullptr;  // token ids work without; texts will ask for it
  }
}

std::shared_ptr<const Tokenizer> model_tokenizer(const ModelFile& file, const std::string& vocab) {
  const TokenizerBlob& stored = file.tokenizer();
  if (vocab == kBytes) {
    RWKV_CHECK(stored.name.empty() || stored.name == kBytes, IoError, "opening ", file.path(),
               " with --vocab bytes: the model was trained with the tokenizer ", stored.name,
               "; leave --vocab out (a file of that name is ./bytes)");
    return make_tokenizer(kBytes, "");
  }
  if (!vocab.empty()) {
    RWKV_CHECK(stored.name != kBytes, IoError, "opening ", file.path(), " with --vocab ", vocab,
               ": the model was trained on bytes and needs no vocabulary; leave --vocab out");
    auto given = load_tokenizer(stored.name.empty() ? "auto" : stored.name, {.file = vocab});
    RWKV_CHECK(stored.hash.empty() || given->hash() == stored.hash, IoError, "opening ",
               file.path(), " with --vocab ", vocab, ": the model was trained with another ",
               "vocabulary (sha256 ", stored.hash, ", the file's is ", given->hash(),
               "); leave --vocab out to use the one in the model file");
    return given;
  }
  if (const auto* gguf = dynamic_cast<const GgufFile*>(&file.file())) {
    auto found = tokenizer_of_gguf(*gguf);
    return found != nullptr ? found : guess_tokenizer(file);
  }
  if (file.format() != TensorFormat::kHdf5)
    return stored.name.empty() ? guess_tokenizer(file) : named_tokenizer(file);
  if (stored.name.empty()) return nullptr;
  if (stored.blob.empty() && stored.name != kBytes)
    return load_tokenizer(stored.name, {.beside = file.path()});
  try {
    return make_tokenizer(stored.name, std::string(stored.blob.begin(), stored.blob.end()),
                          file.path());
  } catch (const ConfigError& e) {
    throw IoError(str("opening ", file.path(), ": ", e.what()));
  }
}

}  // namespace

const Tokenizer& LoadedModel::need_tokenizer() const {
  RWKV_CHECK(tokenizer != nullptr, ConfigError, path,
             " does not say which tokenizer it was trained with, or its vocabulary is not there; "
             "give the vocabulary file with --vocab (--vocab bytes: a model of bytes), or work "
             "with token ids");
  return *tokenizer;
}

std::shared_ptr<const Tokenizer> find_tokenizer(const ModelFile& file, const std::string& vocab) {
  auto tokenizer = model_tokenizer(file, vocab);
  if (tokenizer == nullptr) return nullptr;
  const std::string& hash = file.tokenizer().hash;
  RWKV_CHECK(hash.empty() || hash == tokenizer->hash(), IoError, "opening ", file.path(), ": the ",
             tokenizer->name(), " vocabulary found has sha256 ", tokenizer->hash(),
             ", the model was trained with ", hash, "; give the right file with --vocab");
  const int64_t rows = file.config().vocab_size;
  RWKV_CHECK(tokenizer->vocab_size() <= rows, IoError, "opening ", file.path(), ": the ",
             tokenizer->name(), " vocabulary has ", tokenizer->vocab_size(),
             " ids, but the model has only ", rows, " rows; it belongs to another model");
  return tokenizer;
}

LoadedModel load_model(const std::string& path, const std::string& vocab) {
  const ModelFile file = ModelFile::open(path);
  LoadedModel m;
  m.path = path;
  m.tokenizer = find_tokenizer(file, vocab);
  OpenedModel opened = open_model(file);
  m.model = std::move(opened.model);
  m.weights = std::move(opened.weights);
  return m;
}

}  // namespace rwkv
