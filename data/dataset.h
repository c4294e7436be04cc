#pragma once
/// Token streams: where training samples are cut from. The token file format is described field by
/// field in docs/token-files.md.

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/io/atomic_file.h"
#include "data/io/hdf5_file.h"
#include "data/tokenizer/tokenizer.h"

namespace rwkv {

/// A flat stream of token ids. Document boundaries are ignored here, as in the reference trainer.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  /// Number of tokens.
  virtual int64_t size() const = 0;
  /// Every id is at least 0 and below this.
  virtual int32_t vocab_size() const = 0;
  /// Fills `out` with the tokens [offset, offset + out.size()). Any thread may call it.
  /// Throws IoError for damaged files and ranges outside the stream.
  virtual void read(int64_t offset, std::span<int32_t> out) const = 0;
  /// For messages: the file name, or what the tokens are.
  virtual std::string describe() const = 0;
};

/// Uniformly random ids, a pure function of seed and position: smoke runs and benchmarks.
class RandomTokens final : public TokenSource {
 public:
  RandomTokens(int64_t size, int32_t vocab_size, uint64_t seed);
  int64_t size() const override { return size_; }
  int32_t vocab_size() const override { return vocab_size_; }
  void read(int64_t offset, std::span<int32_t> out) const override;
  std::string describe() const override { return "synthetic random tokens"; }

 private:
  int64_t size_;
  int32_t vocab_size_;
  uint64_t seed_;
};

/// Tokens that lie in memory: tests, prompts, small files.
class MemoryTokens final : public TokenSource {
 public:
  MemoryTokens(std::vector<int32_t> ids, int32_t vocab_size);
  int64_t size() const override { return static_cast<int64_t>(ids_.size()); }
  int32_t vocab_size() const override { return vocab_size_; }
  void read(int64_t offset, std::span<int32_t> out) const override;
  std::string describe() const override { return "tokens in memory"; }

 private:
  std::vector<int32_t> ids_;
  int32_t vocab_size_;
};

/// A token file opened for reading. Holds a few kilobytes, whatever the size of the file.
class TokenFile final : public TokenSource {
 public:
  /// Throws IoError unless `path` is a complete token file of a version that is known here, and
  /// its seal (data/io/seal.h) holds: HDF5 would crash on some damaged files. The seal leaves out
  /// tokens and document offsets, so that opening reads little; `verify` reads all.
  static std::shared_ptr<const TokenFile> open(const std::string& path);
  /// The same without asking for a seal: for files that another program wrote. Reads all of it in a
  /// child process first (data/io/trial.h).
  static std::shared_ptr<const TokenFile> open_unsealed(const std::string& path);
  /// Seals a token file that has no seal. Throws IoError.
  static void seal(const std::string& path);

  int64_t size() const override { return size_; }
  int32_t vocab_size() const override { return vocab_size_; }
  void read(int64_t offset, std::span<int32_t> out) const override;
  std::string describe() const override { return file_.path(); }

  int64_t documents() const { return documents_; }
  /// Bytes of text that the tokens stand for (for bits per byte).
  int64_t text_bytes() const { return text_bytes_; }
  const std::string& tokenizer_name() const { return tokenizer_name_; }
  const std::string& tokenizer_hash() const { return tokenizer_hash_; }
  /// JSON text that says how the file was made.
  std::string created() const;
  /// The tokenizer stored in the file.
  std::shared_ptr<const Tokenizer> tokenizer() const;
  /// Starts of the documents [first, first + count) and the end of the last: count + 1 numbers.
  std::vector<int64_t> document_offsets(int64_t first, int64_t count) const;
  /// How often each id occurs, (vocab_size).
  std::vector<int64_t> histogram() const;
  /// Entropy of the distribution of single tokens, in nats: the loss of a model that knows
  /// frequencies only.
  double unigram_entropy() const;

  /// Reads everything and returns one line per problem: checksums, ids, document offsets, counts,
  /// vocabulary. Empty: the file is good. `progress` is called with the share done, 0 to 1.
  std::vector<std::string> verify(const std::function<void(double)>& progress = {}) const;

 private:
  explicit TokenFile(Hdf5File file);
  static std::shared_ptr<const TokenFile> open_trusted(const std::string& path);
  Hdf5File file_;
  int64_t size_ = 0, documents_ = 0, text_bytes_ = 0, block_ = 0;
  int32_t vocab_size_ = 0;
  std::string tokenizer_name_, tokenizer_hash_;
};

/// Writes a token file document by document in constant memory. Nothing is visible under the target
/// name before `finish`; without it the destructor removes what was written.
class TokenFileWriter {
 public:
  /// `created`: JSON text that says how the file is made. Throws IoError.
  TokenFileWriter(const std::string& path, std::shared_ptr<const Tokenizer> tokenizer,
                  std::string created);

  /// Appends one document; its ids include the end-of-document token if there is to be one.
  /// Empty documents are counted too. Throws IoError (disk full), InternalError for a wrong id.
  void add_document(std::span<const int32_t> ids);
  /// The same in pieces: any number of `add_tokens`, then `end_document`.
  void add_tokens(std::span<const int32_t> ids);
  void end_document();
  /// Writes what is left, closes, syncs and renames. Call once, at the end.
  void finish();
  /// As `finish`, under another name in the same folder.
  void finish_as(const std::string& path);

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(documents_); }
  int64_t text_bytes() const { return text_bytes_; }
  const std::string& path() const { return out_.target(); }

 private:
  void flush_tokens();
  void flush_offsets();
  AtomicFile out_;
  Hdf5File file_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool narrow_;  ///< u16 tokens
  std::vector<uint16_t> block16_;
  std::vector<int32_t> block32_;
  std::vector<int64_t> offsets_, histogram_, id_bytes_;
  std::vector<uint32_t> block_crc_;
  uint32_t offsets_crc_ = 0;
  int64_t tokens_ = 0, documents_ = 0, text_bytes_ = 0;
};

/// Copies tokens [0, cut) of a finished token file to `first` and the rest to `second`, cutting the
/// document that contains `cut` in two. Offsets and counts are rebuilt, `created` is kept.
void split_token_file(const std::string& path, int64_t cut, const std::string& first,
                      const std::string& second);

}  // namespace rwkv
