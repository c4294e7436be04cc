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

/// Where a symbolic link leads, through any number of them; any other path as it is.
std::string followed(std::string path) {
  constexpr int kMostLinks = 40;  // what Linux follows
  const std::string given = path;
  for (int links = 0; links <= kMostLinks; ++links) {
    std::error_code ec;
    const bool refused = fs::exists(path, ec) && !fs::is_regular_file(path, ec);
    const fs::path to = fs::read_symlink(path, ec);
    if (refused || ec) return path;
    path = (fs::path(path).parent_path() / to).string();  // a relative one counts from the link
  }
  throw IoError(str("writing ", given, ": its symbolic links lead in a circle"));
}

std::string temporary_name(const std::string& target) {
  const std::string dir = directory_of(target);
  std::error_code ec;
  RWKV_CHECK(fs::is_directory(dir, ec), IoError, "writing ", target, ": ",
             fs::exists(dir, ec)
                 ? str(dir, " is a file, no folder; choose another path")
                 : str("the folder ", dir, " does not exist; create it or choose another path"));
  RWKV_CHECK(!fs::is_directory(target, ec), IoError, "writing ", target,
             ": a folder has that name; give a file name");
  // The file is put in place by renaming, which would replace a device or a pipe.
  RWKV_CHECK(!fs::exists(target, ec) || fs::is_regular_file(target, ec), IoError, "writing ",
             target, ": it is a device or a pipe; give the name of a file");
  static std::atomic<unsigned> counter{0};
  return str(target, ".", ::getpid(), "-", counter++, ".tmp");
}

}  // namespace

AtomicFile::AtomicFile(std::string target)
    : target_(followed(std::move(target))), temp_(temporary_name(target_)), unfinished_(temp_) {}

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
  unfinished_.keep();
  if (::rename(temp_.c_str(), target_.c_str()) != 0) fail(str("renaming ", temp_, " to"), target_);
  done_ = true;
  sync_path(directory_of(target_), O_RDONLY | O_DIRECTORY);
}

NewFolder::NewFolder(const std::string& file)
    : path_(directory_of(file)), unfinished_(fs::exists(path_) ? "" : path_) {
  std::error_code ec;
  if (!fs::create_directories(path_, ec)) path_.clear();
}

NewFolder::~NewFolder() {
  std::error_code ec;
  if (!path_.empty()) fs::remove(path_, ec);  // fails, as it should, if there is something in it
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

bool same_file(const std::string& a, const std::string& b) {
  std::error_code ec;
  if (fs::equivalent(a, b, ec) && !ec) return true;
  const fs::path one = fs::weakly_canonical(fs::absolute(a, ec), ec),
                 other = fs::weakly_canonical(fs::absolute(b, ec), ec);
  return !one.empty() && one == other;
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

size_t remove_stale_temporaries(const std::string& path) {
  const std::string target = followed(path);
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
