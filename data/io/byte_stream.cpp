#include "data/io/byte_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <vector>

#ifdef RWKV_HAVE_ZSTD
#include <zstd.h>
#endif

#include "kernels/core/error.h"

namespace rwkv {
namespace {

class FileStream final : public ByteStream {
 public:
  explicit FileStream(const std::string& path) : path_(path == "-" ? "standard input" : path) {
    fd_ = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    RWKV_CHECK(fd_ >= 0, IoError, "opening ", path_, ": ", std::strerror(errno));
    struct stat st {};
    if (::fstat(fd_, &st) == 0 && S_ISDIR(st.st_mode)) {
      if (fd_ != STDIN_FILENO) ::close(fd_);
      throw IoError(str("opening ", path_, ": a folder, expected a file"));
    }
  }
  ~FileStream() override {
    if (fd_ != STDIN_FILENO) ::close(fd_);
  }
  size_t read(char* out, size_t size) override {
    if (peeked_at_ < peeked_.size()) {
      const size_t n = std::min(size, peeked_.size() - peeked_at_);
      std::memcpy(out, peeked_.data() + peeked_at_, n);
      peeked_at_ += n;
      consumed_ += static_cast<int64_t>(n);
      return n;
    }
    const size_t n = raw_read(out, size);
    consumed_ += static_cast<int64_t>(n);
    return n;
  }
  int64_t consumed() const override { return consumed_; }
  const std::string& path() const { return path_; }
  /// The first bytes, which a later read returns again. Call before the first read.
  std::string_view peek(size_t size) {
    std::string more(size, '\0');
    while (peeked_.size() < size) {
      const size_t n = raw_read(more.data(), size - peeked_.size());
      if (n == 0) break;
      peeked_.append(more, 0, n);
    }
    return peeked_;
  }

 private:
  size_t raw_read(char* out, size_t size) {
    for (;;) {
      const ssize_t n = ::read(fd_, out, size);
      if (n >= 0) return static_cast<size_t>(n);
      RWKV_CHECK(errno == EINTR, IoError, "reading ", path_, ": ", std::strerror(errno));
    }
  }
  std::string path_, peeked_;
  size_t peeked_at_ = 0;
  int fd_ = -1;
  int64_t consumed_ = 0;
};

#ifdef RWKV_HAVE_ZSTD
class ZstdStream final : public ByteStream {
 public:
  explicit ZstdStream(std::unique_ptr<FileStream> file)
      : file_(std::move(file)), context_(ZSTD_createDStream()), input_(ZSTD_DStreamInSize()) {
    RWKV_CHECK(context_ != nullptr, IoError, "reading ", file_->path(),
               ": no memory for the zstd decoder");
    ZSTD_DCtx_setParameter(context_, ZSTD_d_windowLogMax, 27);
  }
  ~ZstdStream() override { ZSTD_freeDStream(context_); }
  size_t read(char* out, size_t size) override {
    ZSTD_outBuffer to{out, size, 0};
    while (to.pos == 0 && size > 0) {
      if (from_.pos == from_.size && !flush_) {
        from_ = {input_.data(), file_->read(input_.data(), input_.size()), 0};
        if (from_.size == 0) {
          RWKV_CHECK(between_frames_, IoError, "reading ", file_->path(),
                     ": the zstd data ends inside a frame; is the file truncated?");
          return 0;
        }
      }
      const size_t rc = ZSTD_decompressStream(context_, &to, &from_);
      RWKV_CHECK(!ZSTD_isError(rc), IoError, "reading ", file_->path(), " near byte ",
                 file_->consumed(), ": damaged zstd data (", ZSTD_getErrorName(rc), ")");
      between_frames_ = rc == 0;
      flush_ = to.pos == to.size && rc != 0;  // the decoder may hold more than fitted
    }
    return to.pos;
  }
  int64_t consumed() const override { return file_->consumed(); }

 private:
  std::unique_ptr<FileStream> file_;
  ZSTD_DStream* context_;
  std::vector<char> input_;
  ZSTD_inBuffer from_{nullptr, 0, 0};
  bool between_frames_ = true, flush_ = false;
};
#endif

}  // namespace

std::unique_ptr<ByteStream> open_byte_stream(const std::string& path) {
  auto file = std::make_unique<FileStream>(path);
  const std::string_view head = file->peek(6);
  const auto starts = [&](std::string_view magic) { return head.starts_with(magic); };
  const auto refuse = [&](std::string_view what, std::string_view command) {
    throw IoError(str("reading ", file->path(), ": ", what, " is not read directly; use ", command,
                      " FILE | rwkv-data tokenize - --format ..."));
  };
  if (starts("\x1f\x8b")) refuse("gzip", "gzip -dc");
  if (starts("\xfd"
             "7zXZ"))
    refuse("xz", "xz -dc");
  // A frame, or a skippable frame (50..5f 2a 4d 18) ahead of one.
  const bool zstd = starts("\x28\xb5\x2f\xfd") || (head.size() >= 4 && (head[0] & 0xf0) == 0x50 &&
                                                   head.substr(1, 3) == "\x2a\x4d\x18");
  if (!zstd) return file;
#ifdef RWKV_HAVE_ZSTD
  return std::make_unique<ZstdStream>(std::move(file));
#else
  refuse("zstd (this program was built without it)", "zstd -dc");
  return nullptr;
#endif
}

}  // namespace rwkv
