#pragma once
/// Text to token ids and back. All tokenizers are immutable after construction: any number of
/// threads may use one.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

class Hdf5File;

/// Every tokenizer of this project uses id 0 for "end of document"; it decodes to nothing.
inline constexpr int32_t kEndOfDocument = 0;

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// "bytes", "world" or "neox": what `make_tokenizer` understands.
  virtual std::string_view name() const = 0;
  /// SHA-256 of the vocabulary, 64 hex digits: equal hashes give equal ids.
  virtual const std::string& hash() const = 0;
  /// Largest id + 1. A model may have more rows (the World models have 65536), never fewer.
  virtual int32_t vocab_size() const = 0;
  /// The bytes that id stands for, valid as long as the tokenizer; empty for kEndOfDocument, other
  /// special tokens, and ids that the vocabulary leaves unused (also those at or above
  /// vocab_size()).
  virtual std::string_view token_bytes(int32_t id) const = 0;
  /// Appends the ids of `text`, which may be any bytes. Emits kEndOfDocument only where a tokenizer
  /// gives that meaning to a text: "neox" does for "<|endoftext|>", the others never.
  virtual void encode_to(std::string_view text, std::vector<int32_t>& ids) const = 0;
  /// The largest position p <= text.size() at which a longer text that starts like this may be cut,
  /// that is: encode(text up to p) followed by encode(the rest) is encode(all), whatever follows.
  /// 0 if there is none. Positions below `from` are not tried: a caller whose text grew knows
  /// already that there is none among them.
  virtual size_t safe_cut(std::string_view text, size_t from) const = 0;
  /// What `make_tokenizer` needs besides the name to build the same tokenizer again; uncompressed.
  /// Empty for "bytes".
  virtual std::string_view vocabulary() const = 0;

  std::vector<int32_t> encode(std::string_view text) const;
  /// Concatenated bytes; not necessarily UTF-8 (see Utf8Stream).
  std::string decode(std::span<const int32_t> ids) const;
};

/// Id of byte b is b + 1: 257 ids with the end of document.
class ByteTokenizer final : public Tokenizer {
 public:
  ByteTokenizer();
  std::string_view name() const override { return "bytes"; }
  const std::string& hash() const override { return hash_; }
  int32_t vocab_size() const override { return 257; }
  std::string_view token_bytes(int32_t id) const override;
  void encode_to(std::string_view text, std::vector<int32_t>& ids) const override;
  size_t safe_cut(std::string_view text, size_t /*from*/) const override { return text.size(); }
  std::string_view vocabulary() const override { return {}; }

 private:
  std::string hash_, bytes_;
};

/// Whether this build has the tokenizer "neox"; it needs PCRE2 and utf8proc.
bool has_neox_tokenizer();

/// "neox" for what begins like a JSON object, else "world".
std::string_view tokenizer_of_vocabulary(std::string_view vocabulary);

/// Builds a tokenizer from its name and vocabulary. Throws ConfigError for an unknown name and for
/// one that this build lacks, IoError for a vocabulary that cannot be parsed or is another
/// tokenizer's; `origin` names its source in messages.
std::shared_ptr<const Tokenizer> make_tokenizer(std::string_view name, std::string vocabulary,
                                                const std::string& origin = "memory");

/// Where a vocabulary file may lie.
struct VocabularyPlaces {
  std::string file;    ///< `--vocab`: used exactly, nothing else is tried
  std::string beside;  ///< a model or data file: its folder is tried first
};

/// A tokenizer by name; "auto" is the one whose vocabulary `places.file` is, and "world" without a
/// file. Vocabulary files are looked for at `places.file`; else beside
/// `places.beside`; else in the user's cache, $XDG_CACHE_HOME/greylag or ~/.cache/greylag.
/// Throws IoError that lists the places and says where the file comes from; ConfigError for a file
/// with "bytes".
std::shared_ptr<const Tokenizer> load_tokenizer(std::string_view name,
                                                const VocabularyPlaces& places = {});

/// Stores name, hash and compressed vocabulary below `group` ("tokenizer"), for token files and
/// checkpoints that explain themselves.
///   group/name       string
///   group/hash       string, 64 hex digits
///   group/vocabulary u8, deflate; absent for "bytes"
void write_tokenizer(Hdf5File& file, std::string_view group, const Tokenizer& tokenizer);
/// Throws IoError if the group is absent or the vocabulary does not have the stored hash.
std::shared_ptr<const Tokenizer> read_tokenizer(const Hdf5File& file, std::string_view group);

}  // namespace rwkv
