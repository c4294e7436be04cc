#include "data/tokenizer/tokenizer.h"

#include <cstdlib>
#include <filesystem>

#include "data/io/atomic_file.h"
#include "data/io/hdf5_file.h"
#include "data/io/sha256.h"
#include "data/tokenizer/world_tokenizer.h"
#include "kernels/core/error.h"
#ifdef RWKV_HAVE_NEOX
#include "data/tokenizer/neox_tokenizer.h"
#endif

namespace fs = std::filesystem;

namespace rwkv {
namespace {
constexpr int64_t kMaxVocabularyBytes = int64_t{32} << 20;  // many times the longest published one
}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  encode_to(text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string out;
  for (const int32_t id : ids) out += token_bytes(id);
  return out;
}

ByteTokenizer::ByteTokenizer() {
  for (int b = 0; b < 256; ++b) bytes_ += static_cast<char>(b);
  hash_ = sha256_hex("greylag bytes: 0 end of document, byte + 1");
}

std::string_view ByteTokenizer::token_bytes(int32_t id) const {
  if (id < 1 || id > 256) return {};
  return std::string_view(bytes_).substr(static_cast<size_t>(id - 1), 1);
}

void ByteTokenizer::encode_to(std::string_view text, std::vector<int32_t>& ids) const {
  ids.reserve(ids.size() + text.size());
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c) + 1);
}

bool has_neox_tokenizer() {
#ifdef RWKV_HAVE_NEOX
  return true;
#else
  return false;
#endif
}

std::string_view tokenizer_of_vocabulary(std::string_view vocabulary) {
  const size_t first = vocabulary.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && vocabulary[first] == '{' ? "neox" : "world";
}

std::shared_ptr<const Tokenizer> make_tokenizer(std::string_view name, std::string vocabulary,
                                                const std::string& origin) {
  if (name == "bytes") return std::make_shared<ByteTokenizer>();
  RWKV_CHECK(name == "world" || name == "neox", ConfigError, "unknown tokenizer \"", name,
             "\"; known are bytes, world and neox");
  const std::string_view kind = tokenizer_of_vocabulary(vocabulary);
  RWKV_CHECK(vocabulary.empty() || kind == name, IoError, "reading the vocabulary ", origin,
             " of the tokenizer ", name, ": found ", kind == "neox" ? "a JSON file" : "a text file",
             ", expected ",
             name == "neox" ? "JSON, as 20B_tokenizer.json is" : "lines ID 'LITERAL' LENGTH",
             "; this looks like a vocabulary of the tokenizer ", kind);
  if (name == "world") return std::make_shared<WorldTokenizer>(std::move(vocabulary), origin);
#ifdef RWKV_HAVE_NEOX
  return std::make_shared<NeoxTokenizer>(std::move(vocabulary), origin);
#else
  throw ConfigError(
      str("reading the vocabulary ", origin, ": this program was built without the ",
          "tokenizer neox; install libpcre2-dev and libutf8proc-dev and build again"));
#endif
}

namespace {

fs::path cache_folder() {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  if (xdg != nullptr && *xdg != '\0') return fs::path(xdg) / "greylag";
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home != '\0') return fs::path(home) / ".cache" / "greylag";
  return {};
}

std::string find_vocabulary(std::string_view name, const VocabularyPlaces& places) {
  if (!places.file.empty()) return places.file;
  const std::string_view published =
      name == "world" ? kWorldVocabularyFile : std::string_view("20B_tokenizer.json");
  std::string tried;
  const auto here = [&](const fs::path& folder) {
    const fs::path file = folder / published;
    std::error_code ec;
    if (fs::is_regular_file(file, ec)) return file.string();
    tried += (tried.empty() ? "" : ", ") + file.string();
    return std::string();
  };
  if (!places.beside.empty()) {
    const std::string found = here(fs::path(places.beside).parent_path());
    if (!found.empty()) return found;
  }
  if (const fs::path cache = cache_folder(); !cache.empty()) {
    const std::string found = here(cache);
    if (!found.empty()) return found;
  }
  if (name == "neox")
    throw IoError(str("the GPT-NeoX tokenizer was not found; looked for ", tried,
                      ". It is not part of this program: it is published with the Pile models. "
                      "Give the file with --vocab (rwkv-bench: --tokenizer FILE)"));
  throw IoError(str("the World vocabulary was not found; looked for ", tried,
                    ". It is not part of this program: the Python package rwkv ships it. Run "
                    "tools/fetch_vocab.sh once, or give the file with --vocab (rwkv-bench: "
                    "--tokenizer FILE)"));
}

}  // namespace

std::shared_ptr<const Tokenizer> load_tokenizer(std::string_view name,
                                                const VocabularyPlaces& places) {
  if (name == "auto" && places.file.empty()) name = "world";
  if (name != "world" && name != "neox" && name != "auto") {
    RWKV_CHECK(places.file.empty(), ConfigError, "opening the vocabulary ", places.file,
               ": the tokenizer ", name, " has none; leave --vocab or --tokenizer out");
    return make_tokenizer(name, "");
  }
  const std::string path = find_vocabulary(name, places);
  std::string vocabulary = read_file(path);
  if (name == "auto") name = tokenizer_of_vocabulary(vocabulary);
  return make_tokenizer(name, std::move(vocabulary), path);
}

void write_tokenizer(Hdf5File& file, std::string_view group, const Tokenizer& tokenizer) {
  const std::string at = std::string(group) + "/";
  file.write_string(at + "name", tokenizer.name());
  file.write_string(at + "hash", tokenizer.hash());
  const std::string_view v = tokenizer.vocabulary();
  if (v.empty()) return;
  const auto* bytes = reinterpret_cast<const uint8_t*>(v.data());
  file.write<uint8_t>(at + "vocabulary", {static_cast<int64_t>(v.size())},
                      std::span<const uint8_t>(bytes, v.size()), {.deflate = 9});
}

std::shared_ptr<const Tokenizer> read_tokenizer(const Hdf5File& file, std::string_view group) {
  const std::string at = std::string(group) + "/";
  const std::string name = file.read_string(at + "name"), hash = file.read_string(at + "hash");
  std::string vocabulary;
  if (file.exists(at + "vocabulary")) {
    // Compressed, and so not bounded by the file.
    const int64_t size = file.numel(at + "vocabulary");
    RWKV_CHECK(size <= kMaxVocabularyBytes, IoError, "reading ", at, " from ", file.path(), ": ",
               size, " bytes are no vocabulary; the file is damaged");
    const auto bytes = file.read<uint8_t>(at + "vocabulary");
    vocabulary.assign(bytes.begin(), bytes.end());
  }
  std::shared_ptr<const Tokenizer> tokenizer;
  try {
    tokenizer = make_tokenizer(name, std::move(vocabulary), file.path());
  } catch (const ConfigError& e) {
    throw IoError(str("reading ", at, " from ", file.path(), ": ", e.what()));
  }
  RWKV_CHECK(tokenizer->hash() == hash, IoError, "reading ", at, " from ", file.path(),
             ": the vocabulary has hash ", tokenizer->hash(), ", stored is ", hash,
             "; the file is damaged or was written by another version");
  return tokenizer;
}

}  // namespace rwkv
