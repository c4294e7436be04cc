#pragma once
/// The GPT-NeoX (20B) tokenizer of the Pile models: byte-level BPE from a "tokenizers" JSON file.

#include <memory>
#include <string>

#include "data/tokenizer/tokenizer.h"

namespace rwkv {

/// The file name under which the tokenizer is published.
inline constexpr std::string_view kNeoxVocabularyFile = "20B_tokenizer.json";

/// Ids are those of the Hugging Face library without its post-processor ("add_special_tokens" off):
///   1. added tokens that are not "normalized" are cut out ("<|endoftext|>" gives id 0);
///   2. the rest is put into NFC;
///   3. "normalized" added tokens are cut out (runs of 2 to 24 spaces);
///   4. what is left is cut by the expression of GPT-2 (gpt2_split.h);
///   5. in each piece byte pairs are merged.
/// Decoding gives the text back in NFC and without special tokens. Bytes that are not UTF-8 become
/// U+FFFD before step 1: the vocabulary has no entries for some of them.
///
/// Hashes are of the file: the same tokenizer in another layout of the JSON is another one here.
class NeoxTokenizer final : public Tokenizer {
 public:
  /// `json` is the whole file. Throws IoError (see parse_tokenizer_json).
  explicit NeoxTokenizer(std::string json, const std::string& origin = "memory");
  ~NeoxTokenizer() override;

  std::string_view name() const override { return "neox"; }
  const std::string& hash() const override { return hash_; }
  int32_t vocab_size() const override;
  std::string_view token_bytes(int32_t id) const override;
  void encode_to(std::string_view text, std::vector<int32_t>& ids) const override;
  /// Cuts between an ASCII white space and a character before it that is none: pieces, runs of
  /// spaces and normalisation all end there. 0 if an added token contains such a place.
  size_t safe_cut(std::string_view text, size_t from) const override;
  /// The file without carriage returns.
  std::string_view vocabulary() const override { return json_; }

 private:
  struct Impl;
  std::string json_, hash_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace rwkv
