#pragma once
/// The JSON files of the Hugging Face library "tokenizers", as far as byte-level BPE needs them.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer/byte_pairs.h"

namespace rwkv {

/// A string that is found in the text before anything else is done.
struct AddedToken {
  int32_t id;
  std::string content;
  bool special;     ///< decodes to nothing
  bool normalized;  ///< looked for after normalisation; else before
};

struct BpeVocabulary {
  std::vector<std::string> tokens;    ///< bytes by id; empty for special and unused ids
  std::array<int32_t, 256> byte_ids;  ///< -1: no entry (only bytes that UTF-8 never uses)
  std::vector<PairMerge> merges;      ///< in the order of their ranks
  std::vector<AddedToken> added;
  bool nfc = false;
};

/// Reads `model` (BPE: vocab, merges), `added_tokens`, `normalizer` (NFC or null) and
/// `pre_tokenizer` (ByteLevel). What would change ids and is not supported (dropout, an unknown
/// token, prefixes, other normalizers or pre-tokenizers, stripping added tokens) is refused.
/// Id 0 must be a special added token: it is the end of a document here.
/// Throws IoError that names `origin`, the member, what was found and what is expected.
BpeVocabulary parse_tokenizer_json(std::string_view json, const std::string& origin);

}  // namespace rwkv
