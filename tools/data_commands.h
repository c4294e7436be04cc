#pragma once
/// The commands of rwkv-data that look at token data, convert it, and go from text to ids and back.

#include <cstdint>
#include <string>

namespace rwkv {

/// Prints what a token file or binidx data holds; `ctx` > 0: also its magic prime.
void data_info(const std::string& path, int64_t ctx);
/// Reads everything. Returns the exit code: 3 if something is wrong, which is printed. `seal`:
/// seals a token file without a seal if all is good.
int data_verify(const std::string& path, bool seal);

struct ConvertOptions {
  std::string input, output;
  std::string to = "auto";       ///< hdf5, binidx; auto: by the name of the output
  std::string tokenizer, vocab;  ///< of binidx input, which does not name its own
};
/// Token files to binidx and back.
void data_convert(const ConvertOptions& options);

struct TextOptions {
  std::string input = "-", output;  ///< "-": standard input; no output: standard output
  std::string tokenizer = "auto", vocab;
  bool lines = false;  ///< each line of the input is a text of its own
};
/// Text (any bytes) to one JSON array of ids; with `lines` to one per line.
void data_encode(const TextOptions& options);
/// The texts of lists of ids, one list per line, one after the other; with `lines` a line end after
/// each.
void data_decode(const TextOptions& options);

}  // namespace rwkv
