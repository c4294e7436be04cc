#include "inference/load.h"

#include "data/io/hdf5_file.h"
#include "data/io/seal.h"
#include "model/weights.h"

namespace rwkv {
namespace {

std::shared_ptr<const Tokenizer> model_tokenizer(Hdf5File& file, const std::string& vocab) {
  const TokenizerBlob stored = read_tokenizer(file);
  if (!vocab.empty()) {
    RWKV_CHECK(stored.name != "bytes", IoError, "opening ", file.path(), " with --vocab ", vocab,
               ": the model was trained on bytes and needs no vocabulary; leave --vocab out");
    auto given = load_tokenizer(stored.name.empty() ? "auto" : stored.name, {.file = vocab});
    RWKV_CHECK(stored.hash.empty() || given->hash() == stored.hash, IoError, "opening ",
               file.path(), " with --vocab ", vocab, ": the model was trained with another ",
               "vocabulary (sha256 ", stored.hash, ", the file's is ", given->hash(),
               "); leave --vocab out to use the one in the model file");
    return given;
  }
  if (stored.name.empty()) return nullptr;
  if (stored.blob.empty() && stored.name != "bytes")
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
             " does not say which tokenizer it was trained with; give the vocabulary file with "
             "--vocab, or work with token ids");
  return *tokenizer;
}

LoadedModel load_model(const std::string& path, const std::string& vocab) {
  // The HDF5 library crashes on some damaged files: a seal is checked before it sees them.
  if (has_seal(path)) check_seal(path, "");
  Hdf5File file = Hdf5File::open(path);
  LoadedModel m;
  m.path = path;
  m.model = make_model(read_model_config(file));
  m.tokenizer = model_tokenizer(file, vocab);
  if (m.tokenizer != nullptr) {
    const std::string hash = read_tokenizer(file).hash;
    RWKV_CHECK(hash.empty() || hash == m.tokenizer->hash(), IoError, "opening ", path, ": the ",
               m.tokenizer->name(), " vocabulary found has sha256 ", m.tokenizer->hash(),
               ", the model was trained with ", hash, "; give the right file with --vocab");
    const int64_t rows = m.model->config().vocab_size;
    RWKV_CHECK(m.tokenizer->vocab_size() <= rows, IoError, "opening ", path, ": the ",
               m.tokenizer->name(), " vocabulary has ", m.tokenizer->vocab_size(),
               " ids, but the model has only ", rows, " rows; it belongs to another model");
  }
  m.weights = std::make_unique<ParamStore>(Device::kCpu, m.model->params(), "weights");
  read_weights(file, m.model->params(), *m.weights);
  return m;
}

}  // namespace rwkv
