#pragma once
/// The RWKV World vocabulary: greedy longest match over bytes.

#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"

namespace rwkv {

/// The file name under which the vocabulary is published.
inline constexpr std::string_view kWorldVocabularyFile = "rwkv_vocab_v20230424.txt";

/// Encoding takes the longest entry that matches at each position; every single byte is an entry,
/// so it cannot fail. No normalisation, no special tokens: "<|endoftext|>" is plain text.
class WorldTokenizer final : public Tokenizer {
 public:
  /// `text` is a vocabulary file: lines "ID LITERAL LENGTH", the literal in Python syntax ('..',
  /// ".." with code point escapes, b'..' with byte escapes), split at the first and the last
  /// space; LF or CRLF. Ids from 1 on, each once; each length must be the literal's byte count; all
  /// 256 single bytes must be there. Throws IoError with the line number.
  explicit WorldTokenizer(std::string text, const std::string& origin = "memory");

  std::string_view name() const override { return "world"; }
  const std::string& hash() const override { return hash_; }
  int32_t vocab_size() const override { return static_cast<int32_t>(offset_.size()) - 1; }
  std::string_view token_bytes(int32_t id) const override;
  void encode_to(std::string_view text, std::vector<int32_t>& ids) const override;
  /// Cuts between two bytes that no entry contains side by side: no token can span them.
  size_t safe_cut(std::string_view text, size_t from) const override;
  /// The file with LF line ends: copies that differ in line ends only have the same hash.
  std::string_view vocabulary() const override { return text_; }

 private:
  /// Double-array trie (Aoe 1989): the child of node n along byte c is slot base[n] ^ c, and it
  /// exists if the slot's parent is n.
  struct Slot {
    int32_t base = 0, parent = -1;
    int32_t id = -1;  ///< entry that ends here
  };
  void parse(const std::string& origin);
  void build_trie();

  std::string text_, hash_;
  std::string pool_;              ///< bytes of all entries, by id
  std::vector<uint32_t> offset_;  ///< entry id is pool_[offset_[id], offset_[id + 1])
  std::vector<Slot> slots_;
  std::vector<bool> adjacent_;  ///< [256 * a + b]: some entry contains byte a followed by byte b
};

}  // namespace rwkv
