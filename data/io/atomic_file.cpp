#include "data/io/atomic_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "kernels/core/error.h"

namespace fs = std::filesystem;

namespace rwkv {
namespace {

std::string directory_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

/// A file descriptor that closes itself.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }
  /// Some file systems report a full disk only here.
  bool close() {
    const int fd = fd_;
    fd_ = -1;
    return ::close(fd) == 0;
  }

 private:
  int fd_;
};

[[noreturn]] void fail(std::string_view doing, const std::string& path) {
  const int e = errno;
  throw IoError(str(doing, " ", path, ": ", std::strerror(e)));
}

void sync_path(const std::string& path, int flags) {
  Fd fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (fd.get() < 0) fail("opening for fsync", path);
  // Some file systems cannot sync a directory and say EINVAL: there is nothing more to do then.
  if (::fsync(fd.get()) != 0 && errno != EINVAL) fail("fsync of", path);
}

/// Frees the blocks even if a library still holds the file open, then removes the name.
void discard(const std::string& path) noexcept {
  if (::truncate(path.c_str(), 0) != 0) { /* not there, or not ours to shorten */
  }
  ::unlink(path.c_str());
}

}  // namespace

AtomicFile::AtomicFile(std::string target) : target_(std::move(target)) {
  const std::string dir = directory_of(target_);
  std::error_code ec;
  RWKV_CHECK(fs::is_directory(dir, ec), IoError, "writing ", target_, ": the folder ", dir,
             " does not exist; create it or choose another path");
  RWKV_CHECK(!fs::is_directory(target_, ec), IoError, "writing ", target_,
             ": a folder has that name; give a file name");
  // The file is put in place by renaming, which would replace a device or a pipe.
  RWKV_CHECK(!fs::exists(target_, ec) || fs::is_regular_file(target_, ec), IoError, "writing ",
             target_, ": it is a device or a pipe; give the name of a file");
  static std::atomic<unsigned> counter{0};
  temp_ = str(target_, ".", ::getpid(), "-", counter++, ".tmp");
}

AtomicFile::~AtomicFile() {
  if (!done_) discard(temp_);
}

void AtomicFile::rename_target(std::string target) {
  RWKV_ASSERT(directory_of(target) == directory_of(target_), "AtomicFile cannot change folders");
  target_ = std::move(target);
}

void AtomicFile::commit() {
  RWKV_ASSERT(!done_, "AtomicFile committed twice");
  sync_path(temp_, O_RDONLY);
  if (::rename(temp_.c_str(), target_.c_str()) != 0) fail(str("renaming ", temp_, " to"), target_);
  done_ = true;
  sync_path(directory_of(target_), O_RDONLY | O_DIRECTORY);
}

void write_file_atomic(const std::string& path, std::string_view content) {
  AtomicFile out(path);
  Fd fd(::open(out.temp_path().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (fd.get() < 0) fail("creating", out.temp_path());
  while (!content.empty()) {
    const ssize_t n = ::write(fd.get(), content.data(), content.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("writing", out.temp_path());
    }
    content.remove_prefix(static_cast<size_t>(n));
  }
  if (!fd.close()) fail("closing", out.temp_path());
  out.commit();
}

std::string read_file(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) fail("opening", path);
  std::string text;
  struct stat st {};
  if (::fstat(fd.get(), &st) == 0 && st.st_size > 0) text.reserve(static_cast<size_t>(st.st_size));
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("reading", path);
    }
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
}

size_t remove_stale_temporaries(const std::string& target) {
  const std::string prefix = fs::path(target).filename().string() + ".";
  size_t removed = 0;
  std::error_code ec;
  for (fs::directory_iterator it(directory_of(target), ec), end; !ec && it != end;
       it.increment(ec)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(prefix) || !name.ends_with(".tmp")) continue;
    const char* begin = name.data() + prefix.size();
    int pid = 0;
    const auto [rest, error] = std::from_chars(begin, name.data() + name.size(), pid);
    if (error != std::errc{} || *rest != '-' || pid <= 0) continue;
    if (::kill(pid, 0) == 0 || errno != ESRCH) continue;
    discard(it->path().string());
    ++removed;
  }
  return removed;
}

}  // namespace rwkv
