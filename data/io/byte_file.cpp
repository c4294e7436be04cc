#include "data/io/byte_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace rwkv {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

[[noreturn]] void fail(std::string_view doing, const std::string& path) {
  const int e = errno;
  throw IoError(str(doing, " ", path, ": ", std::strerror(e)));
}

}  // namespace

ByteFile ByteFile::open(const std::string& path) {
  ByteFile f;
  f.path_ = path;
  f.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (f.fd_ < 0) fail("opening", path);
  struct stat st {};
  if (::fstat(f.fd_, &st) != 0) fail("opening", path);
  RWKV_CHECK(S_ISREG(st.st_mode), IoError, "opening ", path, ": it is not a regular file");
  f.size_ = static_cast<uint64_t>(st.st_size);
  return f;
}

ByteFile::ByteFile(ByteFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), size_(other.size_), path_(std::move(other.path_)) {}

ByteFile& ByteFile::operator=(ByteFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

ByteFile::~ByteFile() {
  if (fd_ >= 0) ::close(fd_);
}

void ByteFile::check_range(uint64_t offset, uint64_t bytes, std::string_view what) const {
  RWKV_CHECK(offset <= size_ && bytes <= size_ - offset, IoError, "reading ", what, " of ", path_,
             ": it should be ", bytes, " bytes at ", offset, ", but the file has ", size_,
             " bytes: it is truncated or damaged");
}

void ByteFile::read(uint64_t offset, std::span<std::byte> out, std::string_view what) const {
  check_range(offset, out.size(), what);
  while (!out.empty()) {
    const ssize_t n = ::pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(str("reading ", what, " of"), path_);
    RWKV_CHECK(n > 0, IoError, "reading ", what, " of ", path_, ": the file became shorter");
    out = out.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
}

std::vector<std::byte> ByteFile::read(uint64_t offset, uint64_t bytes,
                                      std::string_view what) const {
  check_range(offset, bytes, what);
  std::vector<std::byte> out(bytes);
  read(offset, out, what);
  return out;
}

ByteWriter::ByteWriter(const std::string& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("creating", path);
}

ByteWriter::~ByteWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void ByteWriter::flush() {
  std::span<const std::byte> rest = buffer_;
  while (!rest.empty()) {
    const ssize_t n = ::write(fd_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("writing", path_);
    rest = rest.subspan(static_cast<size_t>(n));
  }
  buffer_.clear();
}

void ByteWriter::write(std::span<const std::byte> bytes) {
  position_ += bytes.size();
  while (!bytes.empty()) {
    const size_t n = std::min(bytes.size(), kBufferBytes - buffer_.size());
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
    bytes = bytes.subspan(n);
    if (buffer_.size() == kBufferBytes) flush();
  }
}

void ByteWriter::zeros(uint64_t count) {
  constexpr std::byte kZero[64] = {};
  for (; count > 0; count -= std::min<uint64_t>(count, sizeof kZero))
    write({kZero, static_cast<size_t>(std::min<uint64_t>(count, sizeof kZero))});
}

void ByteWriter::pad_to(uint64_t alignment) {
  zeros((alignment - position_ % alignment) % alignment);
}

void ByteWriter::close() {
  flush();
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) fail("closing", path_);  // some file systems report a full disk only here
}

}  // namespace rwkv
