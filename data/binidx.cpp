#include "data/binidx.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/io/atomic_file.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr int64_t kVersion = 1;
constexpr int64_t kHeaderBytes = 9 + 8 + 1 + 8 + 8;
constexpr int64_t kLongestSequence = int64_t{1} << 30;

struct TokenType {
  int code;
  int width;
  std::string_view name;
};
constexpr std::array<TokenType, 6> kTokenTypes = {
    {{1, 1, "u8"}, {2, 1, "i8"}, {3, 2, "i16"}, {4, 4, "i32"}, {5, 8, "i64"}, {8, 2, "u16"}}};

/// Numbers of one array of the index, in order, a piece at a time.
template <class T>
class Column {
 public:
  Column(const PosixReader& file, int64_t at, int64_t count) : file_(file), at_(at), left_(count) {}
  T next() {
    if (used_ == have_) {
      have_ = static_cast<size_t>(std::min<int64_t>(left_, kPiece));
      file_.read_at(at_, buffer_.data(), have_ * sizeof(T));
      at_ += static_cast<int64_t>(have_ * sizeof(T));
      left_ -= static_cast<int64_t>(have_);
      used_ = 0;
    }
    return buffer_[used_++];
  }

 private:
  static constexpr int64_t kPiece = 8192;
  const PosixReader& file_;
  int64_t at_, left_;
  size_t used_ = 0, have_ = 0;
  std::vector<T> buffer_ = std::vector<T>(kPiece);
};

template <class T>
void widen(const char* from, std::span<int64_t> to) {
  for (size_t i = 0; i < to.size(); ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    to[i] = value;
  }
}

}  // namespace

std::string binidx_prefix(const std::string& path) {
  const bool with_extension = path.ends_with(".bin") || path.ends_with(".idx");
  return with_extension ? path.substr(0, path.size() - 4) : path;
}

bool is_binidx(const std::string& path) {
  if (path.ends_with(".bin") || path.ends_with(".idx")) return true;
  std::error_code ec;
  return !path.empty() && !std::filesystem::is_regular_file(path, ec) &&
         (std::filesystem::exists(path + ".idx", ec) || std::filesystem::exists(path + ".bin", ec));
}

BinidxFile::BinidxFile(const std::string& prefix, int32_t vocab_size)
    : idx_(prefix + ".idx"), bin_(prefix + ".bin"), vocab_size_(vocab_size) {}

std::shared_ptr<const BinidxFile> BinidxFile::open(const std::string& path, int32_t vocab_size) {
  RWKV_CHECK(vocab_size > 0, ConfigError, "opening ", path, ": a vocabulary of ", vocab_size,
             " ids");
  std::shared_ptr<BinidxFile> file(new BinidxFile(binidx_prefix(path), vocab_size));
  file->read_header();
  file->check_index();
  return file;
}

void BinidxFile::read_header() {
  const std::string& path = idx_.path();
  RWKV_CHECK(idx_.size() >= kHeaderBytes, IoError, "opening ", path, ": it has ", idx_.size(),
             " bytes, the header alone has ", kHeaderBytes, "; the file was cut short");
  std::array<char, kHeaderBytes> header;
  idx_.read_at(0, header.data(), header.size());
  RWKV_CHECK(std::string_view(header.data(), kMagic.size()) == kMagic, IoError, "opening ", path,
             ": it does not begin with MMIDIDX: not an index of binidx data, or damaged");
  uint64_t version = 0, sequences = 0, marks = 0;
  std::memcpy(&version, header.data() + 9, 8);
  code_ = static_cast<unsigned char>(header[17]);
  std::memcpy(&sequences, header.data() + 18, 8);
  std::memcpy(&marks, header.data() + 26, 8);
  RWKV_CHECK(version == kVersion, IoError, "opening ", path, ": binidx version ", version,
             ", this program reads ", kVersion);
  const auto* type = std::ranges::find(kTokenTypes, code_, &TokenType::code);
  RWKV_CHECK(type != kTokenTypes.end(), IoError, "opening ", path, ": type code ", code_,
             ", expected one of integers: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16");
  width_ = type->width;
  // Bounded by the file's length before anything is multiplied: the numbers may be absurd.
  const auto body = static_cast<uint64_t>(idx_.size() - kHeaderBytes);
  RWKV_CHECK(sequences <= body / 12 && marks <= body / 8 && sequences * 12 + marks * 8 == body,
             IoError, "opening ", path, ": ", sequences, " sequences and ", marks,
             " document marks do not fit its length of ", idx_.size(),
             " bytes (34 + 12 per sequence + 8 per mark); cut short, or damaged");
  RWKV_CHECK(marks > 0, IoError, "opening ", path,
             ": it has no document marks, expected documents + 1");
  sequences_ = static_cast<int64_t>(sequences);
  marks_ = static_cast<int64_t>(marks);
  RWKV_CHECK(bin_.size() % width_ == 0, IoError, "opening ", bin_.path(), ": its length of ",
             bin_.size(), " bytes is no multiple of the ", width_,
             " bytes per token that the index says; cut short, or damaged");
  tokens_ = bin_.size() / width_;
}

void BinidxFile::check_index() const {
  const auto damaged = [&](auto&&... parts) {
    throw IoError(str("opening ", idx_.path(), ": ", parts..., "; the index is damaged, or ",
                      bin_.path(), " is not the file it was made for"));
  };
  Column<int32_t> sizes(idx_, kHeaderBytes, sequences_);
  Column<int64_t> pointers(idx_, kHeaderBytes + 4 * sequences_, sequences_);
  int64_t at = 0;  // byte in the .bin
  for (int64_t i = 0; i < sequences_; ++i) {
    const int64_t size = sizes.next(), pointer = pointers.next();
    if (pointer != at) damaged("sequence ", i, " begins at byte ", pointer, ", expected ", at);
    if (size < 0 || size > (bin_.size() - at) / width_)
      damaged("sequence ", i, " at byte ", at, " has ", size, " tokens of ", width_,
              " bytes, the data ends at byte ", bin_.size());
    at += size * width_;
  }
  if (at != bin_.size()) damaged("the sequences cover ", at, " bytes, the data has ", bin_.size());
  Column<int64_t> marks(idx_, kHeaderBytes + 12 * sequences_, marks_);
  int64_t previous = 0;
  for (int64_t i = 0; i < marks_; ++i) {
    const int64_t mark = marks.next();
    if (mark < previous || mark > sequences_ || (i == 0 && mark != 0))
      damaged("document ", i, " begins with sequence ", mark, " of ", sequences_,
              ", the one before with ", previous);
    previous = mark;
  }
  if (previous != sequences_)
    damaged("the documents end at sequence ", previous, ", there are ", sequences_);
}

void BinidxFile::read(int64_t offset, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  RWKV_CHECK(offset >= 0 && count <= tokens_ && offset <= tokens_ - count, IoError, "reading ",
             bin_.path(), ": ", count, " tokens from ", offset, ", it has ", tokens_);
  constexpr size_t kPiece = 1024;
  std::array<char, kPiece * 8> bytes;
  std::array<int64_t, kPiece> values;
  for (size_t done = 0; done < out.size();) {
    const size_t n = std::min(out.size() - done, kPiece);
    const int64_t first = offset + static_cast<int64_t>(done);
    bin_.read_at(first * width_, bytes.data(), n * static_cast<size_t>(width_));
    const std::span<int64_t> ids(values.data(), n);
    switch (code_) {
      case 1:
        widen<uint8_t>(bytes.data(), ids);
        break;
      case 2:
        widen<int8_t>(bytes.data(), ids);
        break;
      case 3:
        widen<int16_t>(bytes.data(), ids);
        break;
      case 4:
        widen<int32_t>(bytes.data(), ids);
        break;
      case 5:
        widen<int64_t>(bytes.data(), ids);
        break;
      default:
        widen<uint16_t>(bytes.data(), ids);
        break;
    }
    for (size_t i = 0; i < n; ++i) {
      RWKV_CHECK(ids[i] >= 0 && ids[i] < vocab_size_, IoError, "reading ", bin_.path(), ": token ",
                 first + static_cast<int64_t>(i), " has id ", ids[i], ", the vocabulary has ",
                 vocab_size_, " ids. Was it made with another tokenizer, or is the file damaged?");
      out[done + i] = static_cast<int32_t>(ids[i]);
    }
    done += n;
  }
}

std::string_view BinidxFile::token_type() const {
  return std::ranges::find(kTokenTypes, code_, &TokenType::code)->name;
}

void BinidxFile::for_each_document(const std::function<void(int64_t)>& document) const {
  Column<int32_t> sizes(idx_, kHeaderBytes, sequences_);
  Column<int64_t> marks(idx_, kHeaderBytes + 12 * sequences_, marks_);
  int64_t sequence = marks.next();
  for (int64_t d = 0; d < documents(); ++d) {
    int64_t tokens = 0;
    for (const int64_t end = marks.next(); sequence < end; ++sequence) tokens += sizes.next();
    document(tokens);
  }
}

// --- conversion ---------------------------------------------------------------------------------

namespace {

/// Calls f(begin, tokens, ends_document) for every sequence that the documents become.
template <class F>
void for_each_sequence(const TokenFile& tokens, F&& f) {
  constexpr int64_t kPiece = 8192;
  for (int64_t d = 0; d < tokens.documents(); d += kPiece) {
    const int64_t n = std::min(kPiece, tokens.documents() - d);
    const auto offsets = tokens.document_offsets(d, n);
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      int64_t begin = offsets[i];
      for (bool last = false; !last;) {
        const int64_t left = offsets[i + 1] - begin;
        last = left <= kLongestSequence;
        const int64_t size = last ? left : kLongestSequence;
        f(begin, size, last);
        begin += size;
      }
    }
  }
}

template <class T>
void put(PosixWriter& out, T value) {
  out.append(&value, sizeof value);
}

template <class T>
void write_tokens(const TokenFile& tokens, PosixWriter& out,
                  const std::function<void(int64_t, int64_t)>& progress) {
  std::vector<int32_t> ids;
  std::vector<T> stored;
  constexpr int64_t kPiece = 1 << 18;
  for (int64_t at = 0; at < tokens.size(); at += kPiece) {
    ids.resize(static_cast<size_t>(std::min(kPiece, tokens.size() - at)));
    tokens.read(at, ids);
    stored.assign(ids.begin(), ids.end());
    out.append(stored.data(), stored.size() * sizeof(T));
    if (progress) progress(at + static_cast<int64_t>(ids.size()), tokens.size());
  }
}

}  // namespace

void write_binidx(const TokenFile& tokens, const std::string& prefix,
                  const std::function<void(int64_t, int64_t)>& progress) {
  RWKV_CHECK(tokens.size() > 0, IoError, "writing ", prefix, ".bin: ", tokens.describe(),
             " has no tokens, and the reference cannot open an empty file");
  const bool narrow = tokens.vocab_size() <= 65536;
  const int64_t width = narrow ? 2 : 4;
  AtomicFile bin_file(prefix + ".bin"), idx_file(prefix + ".idx");
  PosixWriter bin(bin_file.temp_path(), PosixWriter::Mode::kNew);
  if (narrow)
    write_tokens<uint16_t>(tokens, bin, progress);
  else
    write_tokens<int32_t>(tokens, bin, progress);
  bin.close();

  int64_t sequences = 0;
  for_each_sequence(tokens, [&](int64_t, int64_t, bool) { ++sequences; });
  PosixWriter idx(idx_file.temp_path(), PosixWriter::Mode::kNew);
  idx.append(kMagic);
  put<uint64_t>(idx, kVersion);
  put<uint8_t>(idx, narrow ? 8 : 4);
  put<uint64_t>(idx, static_cast<uint64_t>(sequences));
  put<uint64_t>(idx, static_cast<uint64_t>(tokens.documents() + 1));
  for_each_sequence(
      tokens, [&](int64_t, int64_t size, bool) { put<int32_t>(idx, static_cast<int32_t>(size)); });
  for_each_sequence(tokens,
                    [&](int64_t begin, int64_t, bool) { put<int64_t>(idx, begin * width); });
  int64_t next = 0;
  put<int64_t>(idx, 0);
  for_each_sequence(tokens, [&](int64_t, int64_t, bool last) {
    ++next;
    if (last) put<int64_t>(idx, next);
  });
  idx.close();
  bin_file.commit();
  idx_file.commit();
}

int64_t binidx_to_token_file(const std::string& binidx, const std::string& output,
                             const std::shared_ptr<const Tokenizer>& tokenizer,
                             const std::function<void(int64_t, int64_t)>& progress) {
  const auto in = BinidxFile::open(binidx, tokenizer->vocab_size());
  const nlohmann::ordered_json created{{"program", "rwkv-data convert"}, {"input", in->describe()}};
  TokenFileWriter out(
      output, tokenizer,
      created.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  std::vector<int32_t> ids;
  constexpr int64_t kPiece = 1 << 16;
  int64_t at = 0;
  in->for_each_document([&](int64_t tokens) {
    for (const int64_t end = at + tokens; at < end; at += static_cast<int64_t>(ids.size())) {
      ids.resize(static_cast<size_t>(std::min(kPiece, end - at)));
      in->read(at, ids);
      out.add_tokens(ids);
    }
    out.end_document();
    if (progress) progress(at, in->size());
  });
  out.finish();
  return at;
}

}  // namespace rwkv
