#pragma once
/// Tokenizers in GGUF files, as llama.cpp wants them.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/io/gguf.h"
#include "data/tokenizer/tokenizer.h"

namespace rwkv {

/// The keys tokenizer.* for a model with so many rows. World and bytes: model "rwkv", tokens as
/// the text between the quotes of a Python bytes literal; NeoX: "gpt2" with its merges. Rows
/// without a token are [PADn]. Null: placeholders only, for use with token ids.
/// Throws ConfigError if the tokenizer has more ids than the model rows.
std::vector<std::pair<std::string, GgufValue>> gguf_tokenizer_keys(const Tokenizer* tokenizer,
                                                                   int64_t rows);

/// The tokenizer of a file. tokenizer.ggml.model "rwkv": "bytes" if it has the 256 bytes only, else
/// "world"; "gpt2" with a document end as id 0 and texts split as GPT-2 does: "neox". The ids are
/// those of the published file, the hash is not: the vocabulary is spelled in another way. Null for
/// placeholders and for other kinds. Throws IoError for damage.
std::shared_ptr<const Tokenizer> tokenizer_of_gguf(const GgufFile& file);

}  // namespace rwkv
