#pragma once
/// binidx, the token files of Megatron and of the reference trainer: NAME.bin holds the tokens of
/// all documents one after the other, NAME.idx says where they begin.
///
/// NAME.idx, little endian, without padding:
///   "MMIDIDX" 0 0     9 bytes
///   version           u64, 1
///   code              u8: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16 (6 and 7 are floats: refused)
///   n                 u64, sequences
///   m                 u64, document marks, documents + 1
///   sizes             n x i32, tokens of each sequence
///   pointers          n x i64, first byte of each sequence in NAME.bin
///   marks             m x i64, first sequence of each document, then n
/// NAME.bin has no header. A document is usually one sequence and ends with token 0.
/// source: spec/formats.md d

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "data/dataset.h"
#include "data/io/posix_file.h"

namespace rwkv {

/// The common part of the two names: "data/minipile" for it, "data/minipile.bin" or ".idx".
std::string binidx_prefix(const std::string& path);
/// True if `path` ends in .bin or .idx, or is the common part of two such files.
bool is_binidx(const std::string& path);

/// A binidx data set opened for reading, straight from its files. Holds a few kilobytes, whatever
/// their size; opening reads the index once from front to back.
class BinidxFile final : public TokenSource {
 public:
  /// `path` as for `binidx_prefix`. The files do not say which tokenizer made them, so the caller
  /// gives the bound of the ids. Throws IoError unless both files are complete and agree: sizes and
  /// pointers of the sequences must cover NAME.bin without gap or overlap, in order.
  static std::shared_ptr<const BinidxFile> open(const std::string& path, int32_t vocab_size);

  int64_t size() const override { return tokens_; }
  int32_t vocab_size() const override { return vocab_size_; }
  /// Throws IoError also for ids outside the vocabulary.
  void read(int64_t offset, std::span<int32_t> out) const override;
  std::string describe() const override { return bin_.path(); }

  int64_t documents() const { return marks_ - 1; }
  int64_t sequences() const { return sequences_; }
  int token_bytes() const { return width_; }
  /// "u16", "i32", ...
  std::string_view token_type() const;
  /// Calls `document` with the number of tokens of each document, in order.
  void for_each_document(const std::function<void(int64_t tokens)>& document) const;

 private:
  BinidxFile(const std::string& prefix, int32_t vocab_size);
  void read_header();
  void check_index() const;

  PosixReader idx_, bin_;
  int32_t vocab_size_;
  int code_ = 0, width_ = 0;
  int64_t sequences_ = 0, marks_ = 0, tokens_ = 0;
};

/// Writes the documents of a token file as PREFIX.bin and PREFIX.idx: u16 up to 65536 ids, i32
/// above. A document of more than 2^30 tokens becomes several sequences of one document (sizes are
/// 32-bit numbers). Constant memory. `progress` is called with the tokens done and their number.
/// Throws IoError.
void write_binidx(const TokenFile& tokens, const std::string& prefix,
                  const std::function<void(int64_t, int64_t)>& progress = {});

/// Writes a binidx data set as a token file with the tokenizer that made it (the files do not say).
/// Returns the number of tokens. Throws IoError, also for ids that the tokenizer does not have.
int64_t binidx_to_token_file(const std::string& binidx, const std::string& output,
                             const std::shared_ptr<const Tokenizer>& tokenizer,
                             const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace rwkv
