#pragma once
/// rwkv-bench tokenize: text to ids and back on one core.

#include <string>
#include <vector>

#include "tools/bench/bench.h"

namespace rwkv::bench {

struct TokenizeOptions : CommonOptions {
  std::vector<std::string> tokenizers;  ///< names or vocabulary files; empty: world, neox, bytes
  std::vector<std::string> texts;       ///< plain text, or .jsonl: the texts of its lines
};

/// Encodes and decodes each text with each tokenizer, in memory, on one thread. First checks that
/// decoding gives back the text, or (NeoX normalises) one with the same ids. Returns the exit code:
/// 1 if that fails. Throws ConfigError, IoError.
int run_tokenize(const TokenizeOptions& options);

}  // namespace rwkv::bench
