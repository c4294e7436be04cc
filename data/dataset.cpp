#include "data/dataset.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <utility>

#include "data/io/crc32.h"
#include "data/io/posix_file.h"
#include "data/io/seal.h"
#include "data/io/trial.h"
#include "kernels/core/error.h"
#include "kernels/core/rng.h"

namespace rwkv {
namespace {

constexpr const char* kFormat = "greylag-tokens";
constexpr int64_t kVersion = 1;
constexpr int64_t kBlock = 1 << 18;  // tokens per chunk and checksum
constexpr int64_t kOffsetsBlock = 1 << 13;
// Far above what any writer makes; memory is taken for a block and for a count of every id.
constexpr int64_t kMaxBlock = 1 << 26, kMaxVocabulary = 1 << 24;

void check_range(const TokenSource& source, int64_t offset, size_t count) {
  const auto n = static_cast<int64_t>(count);
  RWKV_CHECK(offset >= 0 && n <= source.size() && offset <= source.size() - n, IoError, "reading ",
             source.describe(), ": ", n, " tokens from ", offset, ", it has ", source.size());
}

}  // namespace

RandomTokens::RandomTokens(int64_t size, int32_t vocab_size, uint64_t seed)
    : size_(size), vocab_size_(vocab_size), seed_(seed) {
  RWKV_CHECK(size > 0 && vocab_size > 0, ConfigError, "random tokens: size ", size,
             " and vocabulary ", vocab_size, " must be positive");
}

void RandomTokens::read(int64_t offset, std::span<int32_t> out) const {
  check_range(*this, offset, out.size());
  const Rng rng(seed_, hash_name("synthetic tokens"));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<int32_t>(
        rng.below(static_cast<uint64_t>(offset) + i, static_cast<uint64_t>(vocab_size_)));
}

MemoryTokens::MemoryTokens(std::vector<int32_t> ids, int32_t vocab_size)
    : ids_(std::move(ids)), vocab_size_(vocab_size) {
  for (const int32_t id : ids_)
    RWKV_CHECK(id >= 0 && id < vocab_size, ConfigError, "token id ", id,
               " outside the vocabulary of ", vocab_size);
}

void MemoryTokens::read(int64_t offset, std::span<int32_t> out) const {
  check_range(*this, offset, out.size());
  std::copy_n(ids_.begin() + offset, out.size(), out.begin());
}

// --- reading ------------------------------------------------------------------------------------

namespace {

/// Whoever gives something else than a token file gives a text, most likely, or means binidx data.
void check_is_no_text(const std::string& path) {
  std::error_code ec;
  RWKV_CHECK(std::filesystem::exists(path, ec) || path.ends_with(".h5"), IoError, "opening ", path,
             ": there is no such file, and no binidx data ", path, ".bin and ", path, ".idx");
  const PosixReader file(path);
  std::array<char, 8> head{};
  if (file.size() >= std::ssize(head)) file.read_at(0, head.data(), head.size());
  RWKV_CHECK(std::string_view(head.data(), head.size()) == "\x89HDF\r\n\x1a\n" || has_seal(path),
             IoError, "loading ", path, ": it is no token file; rwkv-data tokenize ", path,
             " -o FILE.h5 makes one of a text");
}

}  // namespace

TokenFile::TokenFile(Hdf5File file) : file_(std::move(file)) {}

std::shared_ptr<const TokenFile> TokenFile::open(const std::string& path) {
  check_is_no_text(path);
  check_seal(path,
             "; a token file that another program or an earlier version wrote is sealed by "
             "rwkv-data verify --seal FILE",
             "token file");
  return open_trusted(path);
}

std::shared_ptr<const TokenFile> TokenFile::open_unsealed(const std::string& path) {
  try_in_child(path, [&] { open_trusted(path)->verify(); });
  return open_trusted(path);
}

void TokenFile::seal(const std::string& path) {
  seal_hdf5(path, {"tokens", "documents"});
}

std::shared_ptr<const TokenFile> TokenFile::open_trusted(const std::string& path) {
  std::shared_ptr<TokenFile> t(new TokenFile(Hdf5File::open(path)));
  const Hdf5File& f = t->file_;
  RWKV_CHECK(f.has_attr("", "format") && f.attr_string("", "format") == kFormat, IoError,
             "opening ", path,
             ": an HDF5 file, but not a token file; make one with rwkv-data "
             "tokenize");
  const int64_t version = f.attr_int("", "version");
  RWKV_CHECK(version == kVersion, IoError, "opening ", path, ": token file version ", version,
             ", this program reads ", kVersion);
  t->size_ = f.attr_int("", "token_count");
  t->documents_ = f.attr_int("", "document_count");
  t->text_bytes_ = f.attr_int("", "text_bytes");
  t->block_ = f.attr_int("", "block");
  const int64_t vocab = f.attr_int("", "vocab_size");
  RWKV_CHECK(vocab > 0 && vocab <= kMaxVocabulary && t->block_ > 0 && t->block_ <= kMaxBlock,
             IoError, "opening ", path, ": vocab_size ", vocab, " or block ", t->block_,
             " is out of range; damaged file");
  RWKV_CHECK(t->documents_ >= 0 && t->documents_ < INT64_MAX, IoError, "opening ", path, ": ",
             t->documents_, " documents; damaged file");
  t->vocab_size_ = static_cast<int32_t>(vocab);
  const auto expect = [&](const char* name, int64_t length) {
    const Shape found = f.shape(name);
    RWKV_CHECK(found == Shape{length}, IoError, "opening ", path, ": ", name, " has shape ",
               shape_string(found), ", the attributes say (", length, "); damaged file");
  };
  expect("tokens", t->size_);
  expect("documents", t->documents_ + 1);
  expect("block_crc32", t->size_ / t->block_ + (t->size_ % t->block_ != 0 ? 1 : 0));
  expect("histogram", t->vocab_size_);
  t->tokenizer_name_ = f.read_string("tokenizer/name");
  t->tokenizer_hash_ = f.read_string("tokenizer/hash");
  return t;
}

void TokenFile::read(int64_t offset, std::span<int32_t> out) const {
  file_.read_slice<int32_t>("tokens", offset, static_cast<int64_t>(out.size()), out.data());
  for (const int32_t id : out)
    RWKV_CHECK(id >= 0 && id < vocab_size_, IoError, "reading ", file_.path(), ": token id ", id,
               " near position ", offset, " is outside the vocabulary of ", vocab_size_,
               "; damaged file, see rwkv-data verify");
}

std::string TokenFile::created() const {
  return file_.read_string("created");
}

std::shared_ptr<const Tokenizer> TokenFile::tokenizer() const {
  return read_tokenizer(file_, "tokenizer");
}

std::vector<int64_t> TokenFile::document_offsets(int64_t first, int64_t count) const {
  RWKV_CHECK(first >= 0 && count >= 0 && first <= documents_ - count, IoError, "reading ",
             file_.path(), ": ", count, " documents from ", first, ", it has ", documents_);
  std::vector<int64_t> out(static_cast<size_t>(count) + 1);
  file_.read_slice<int64_t>("documents", first, count + 1, out.data());
  RWKV_CHECK(out.front() >= 0 && out.back() <= size_ && std::ranges::is_sorted(out), IoError,
             "reading ", file_.path(), ": the offsets of documents ", first, " to ", first + count,
             " do not rise within its ", size_, " tokens; damaged file");
  return out;
}

std::vector<int64_t> TokenFile::histogram() const {
  return file_.read<int64_t>("histogram");
}

double TokenFile::unigram_entropy() const {
  double sum = 0;
  for (const int64_t n : histogram()) {
    if (n <= 0) continue;
    const double p = static_cast<double>(n) / static_cast<double>(size_);
    sum -= p * std::log(p);
  }
  return sum;
}

std::vector<std::string> TokenFile::verify(const std::function<void(double)>& progress) const {
  std::vector<std::string> problems;
  const auto problem = [&](auto&&... parts) {
    if (problems.size() < 20) problems.push_back(str(parts...));
  };
  std::shared_ptr<const Tokenizer> tok;
  try {
    tok = tokenizer();
  } catch (const Error& e) {
    problem(e.what());
  }
  if (tok != nullptr && tok->vocab_size() != vocab_size_)
    problem("vocab_size is ", vocab_size_, ", the stored tokenizer has ", tok->vocab_size());

  const auto crcs = file_.read<uint32_t>("block_crc32");
  std::vector<int64_t> counted(static_cast<size_t>(vocab_size_));
  std::vector<int32_t> wide(static_cast<size_t>(std::min(block_, std::max<int64_t>(size_, 1))));
  std::vector<uint16_t> narrow;
  const bool is_narrow = file_.type("tokens") == H5Type::kU16;
  int64_t bytes = 0;
  for (int64_t at = 0; at < size_; at += block_) {
    const auto n = static_cast<size_t>(std::min(block_, size_ - at));
    const std::span<int32_t> ids(wide.data(), n);
    uint32_t crc = 0;
    try {
      file_.read_slice<int32_t>("tokens", at, static_cast<int64_t>(n), ids.data());
    } catch (const IoError& e) {
      problem(e.what());
      continue;
    }
    if (is_narrow) {
      narrow.assign(ids.begin(), ids.end());
      crc = crc32_of<uint16_t>(narrow);
    } else {
      crc = crc32_of<int32_t>(ids);
    }
    if (crc != crcs[static_cast<size_t>(at / block_)])
      problem("tokens ", at, " to ", at + static_cast<int64_t>(n), ": checksum differs");
    for (size_t i = 0; i < n; ++i) {
      if (ids[i] < 0 || ids[i] >= vocab_size_) {
        problem("token ", at + static_cast<int64_t>(i), " has id ", ids[i],
                ", the vocabulary ends at ", vocab_size_);
        break;
      }
      ++counted[static_cast<size_t>(ids[i])];
      if (tok != nullptr) bytes += static_cast<int64_t>(tok->token_bytes(ids[i]).size());
    }
    if (progress)
      progress(static_cast<double>(at + static_cast<int64_t>(n)) / static_cast<double>(size_));
  }
  if (counted != histogram()) problem("the histogram does not match the tokens");
  if (tok != nullptr && bytes != text_bytes_)
    problem("text_bytes is ", text_bytes_, ", the tokens stand for ", bytes);

  uint32_t crc = 0;
  int64_t previous = 0;
  bool ordered = true;
  std::vector<int64_t> offsets;
  for (int64_t at = 0; at <= documents_; at += kOffsetsBlock) {
    offsets.resize(static_cast<size_t>(std::min(kOffsetsBlock, documents_ + 1 - at)));
    file_.read_slice<int64_t>("documents", at, static_cast<int64_t>(offsets.size()),
                              offsets.data());
    crc = crc32_of<int64_t>(offsets, crc);
    if (at == 0 && offsets[0] != 0) ordered = false;
    for (const int64_t o : offsets) {
      ordered = ordered && o >= previous;
      previous = o;
    }
  }
  if (!ordered || previous != size_)
    problem("document offsets must rise from 0 to ", size_, "; they do not");
  if (crc != static_cast<uint32_t>(file_.attr_int("documents", "crc32")))
    problem("document offsets: checksum differs");
  return problems;
}

// --- writing ------------------------------------------------------------------------------------

TokenFileWriter::TokenFileWriter(const std::string& path,
                                 std::shared_ptr<const Tokenizer> tokenizer, std::string created)
    : out_(path),
      file_(Hdf5File::create(out_.temp_path())),
      tokenizer_(std::move(tokenizer)),
      narrow_(tokenizer_->vocab_size() <= 65536),
      histogram_(static_cast<size_t>(tokenizer_->vocab_size())) {
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id)
    id_bytes_.push_back(static_cast<int64_t>(tokenizer_->token_bytes(id).size()));
  file_.write_attr("", "format", kFormat);
  file_.write_attr("", "version", kVersion);
  file_.write_attr("", "vocab_size", tokenizer_->vocab_size());
  file_.write_attr("", "end_of_document", kEndOfDocument);
  file_.write_attr("", "block", kBlock);
  file_.write_string("created", created);
  write_tokenizer(file_, "tokenizer", *tokenizer_);
  if (narrow_)
    file_.create_extendible<uint16_t>("tokens", {.chunk_rows = kBlock});
  else
    file_.create_extendible<int32_t>("tokens", {.chunk_rows = kBlock});
  file_.create_extendible<int64_t>("documents", {.chunk_rows = kOffsetsBlock});
  offsets_.push_back(0);
}

void TokenFileWriter::add_tokens(std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    const auto i = static_cast<size_t>(id);
    RWKV_ASSERT(id >= 0 && i < histogram_.size(), "token id ", id, " outside the vocabulary");
    ++histogram_[i];
    text_bytes_ += id_bytes_[i];
    if (narrow_)
      block16_.push_back(static_cast<uint16_t>(id));
    else
      block32_.push_back(id);
    if (static_cast<int64_t>(block16_.size() + block32_.size()) == kBlock) flush_tokens();
  }
  tokens_ += static_cast<int64_t>(ids.size());
}

void TokenFileWriter::end_document() {
  ++documents_;
  offsets_.push_back(tokens_);
  if (static_cast<int64_t>(offsets_.size()) >= kOffsetsBlock) flush_offsets();
}

void TokenFileWriter::add_document(std::span<const int32_t> ids) {
  add_tokens(ids);
  end_document();
}

void TokenFileWriter::flush_tokens() {
  if (block16_.empty() && block32_.empty()) return;
  if (narrow_)
    file_.append<uint16_t>("tokens", block16_);
  else
    file_.append<int32_t>("tokens", block32_);
  block_crc_.push_back(narrow_ ? crc32_of<uint16_t>(block16_) : crc32_of<int32_t>(block32_));
  block16_.clear();
  block32_.clear();
}

void TokenFileWriter::flush_offsets() {
  file_.append<int64_t>("documents", offsets_);
  offsets_crc_ = crc32_of<int64_t>(offsets_, offsets_crc_);
  offsets_.clear();
}

void TokenFileWriter::finish() {
  flush_tokens();
  flush_offsets();
  file_.write_attr("documents", "crc32", offsets_crc_);
  file_.write<uint32_t>("block_crc32", {static_cast<int64_t>(block_crc_.size())}, block_crc_);
  file_.write<int64_t>("histogram", {static_cast<int64_t>(histogram_.size())}, histogram_,
                       {.deflate = 4, .shuffle = true});
  file_.write_attr("", "token_count", tokens_);
  file_.write_attr("", "document_count", documents_);
  file_.write_attr("", "text_bytes", text_bytes_);
  file_.close();
  TokenFile::seal(out_.temp_path());
  out_.commit();
}

void TokenFileWriter::finish_as(const std::string& path) {
  out_.rename_target(path);
  finish();
}

void split_token_file(const std::string& path, int64_t cut, const std::string& first,
                      const std::string& second) {
  const auto in = TokenFile::open(path);
  RWKV_CHECK(cut > 0 && cut < in->size(), ConfigError, "splitting ", path, " at token ", cut,
             ": it has ", in->size(), " tokens; both parts must hold some");
  const auto tokenizer = in->tokenizer();
  TokenFileWriter a(first, tokenizer, in->created()), b(second, tokenizer, in->created());
  std::vector<int32_t> ids;
  const auto copy = [&](TokenFileWriter& to, int64_t begin, int64_t end) {
    for (; begin < end; begin += static_cast<int64_t>(ids.size())) {
      ids.resize(static_cast<size_t>(std::min(kBlock, end - begin)));
      in->read(begin, ids);
      to.add_tokens(ids);
    }
  };
  constexpr int64_t kPiece = 4096;
  for (int64_t d = 0; d < in->documents(); d += kPiece) {
    const int64_t n = std::min(kPiece, in->documents() - d);
    const auto offsets = in->document_offsets(d, n);
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      const int64_t begin = offsets[i], end = offsets[i + 1];
      copy(a, begin, std::min(end, cut));
      copy(b, std::max(begin, cut), end);
      if (begin < cut) a.end_document();
      if (end > cut || begin >= cut) b.end_document();
    }
  }
  a.finish();
  b.finish();
}

}  // namespace rwkv
