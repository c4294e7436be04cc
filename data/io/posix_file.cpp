#include "data/io/posix_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/core/error.h"

namespace rwkv {

PosixReader::PosixReader(std::string path) : path_(std::move(path)) {
  struct stat st {};
  // Looked at before it is opened: opening a named pipe would wait for a writer.
  RWKV_CHECK(::stat(path_.c_str(), &st) == 0, IoError, "opening ", path_, ": ",
             std::strerror(errno));
  RWKV_CHECK(S_ISREG(st.st_mode), IoError, "opening ", path_, ": ",
             S_ISDIR(st.st_mode) ? "a folder" : "not a regular file", ", expected a file");
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  RWKV_CHECK(fd_ >= 0, IoError, "opening ", path_, ": ", std::strerror(errno));
  size_ = ::fstat(fd_, &st) == 0 ? static_cast<int64_t>(st.st_size) : 0;
}

PosixReader::~PosixReader() {
  if (fd_ >= 0) ::close(fd_);
}

void PosixReader::read_at(int64_t offset, void* out, size_t bytes) const {
  auto* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t n = ::pread(fd_, to, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    RWKV_CHECK(n >= 0, IoError, "reading ", path_, " at byte ", offset, ": ", std::strerror(errno));
    RWKV_CHECK(n > 0, IoError, "reading ", path_, ": it ends at byte ", offset, ", ", bytes,
               " more were expected; it was ", size_,
               " bytes long when it was opened. Was it cut or written to meanwhile?");
    to += n;
    offset += n;
    bytes -= static_cast<size_t>(n);
  }
}

PosixWriter::PosixWriter(std::string path, Mode mode, size_t buffer_bytes)
    : path_(std::move(path)), limit_(buffer_bytes) {
  fd_ = ::open(path_.c_str(),
               O_WRONLY | O_CREAT | O_CLOEXEC | (mode == Mode::kNew ? O_EXCL : O_TRUNC), 0666);
  RWKV_CHECK(fd_ >= 0, IoError, "creating ", path_, ": ", std::strerror(errno));
}

PosixWriter::~PosixWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void PosixWriter::append(const void* data, size_t bytes) {
  buffer_.append(static_cast<const char*>(data), bytes);
  if (buffer_.size() >= limit_) flush();
}

void PosixWriter::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    RWKV_CHECK(n > 0, IoError, "writing ", path_, ": ", std::strerror(errno));
    done += static_cast<size_t>(n);
  }
  buffer_.clear();
}

void PosixWriter::close() {
  flush();
  const int fd = std::exchange(fd_, -1);
  RWKV_CHECK(::close(fd) == 0, IoError, "closing ", path_, ": ", std::strerror(errno));
}

}  // namespace rwkv
