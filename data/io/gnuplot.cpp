#include "data/io/gnuplot.h"

#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>

#include "data/io/atomic_file.h"
#include "data/io/crc32.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

/// A file without a name or a disk: gnuplot's input and output, of any length.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view content) : fd_(::memfd_create("gnuplot", MFD_CLOEXEC)) {
    bool ok = fd_ >= 0;
    while (ok && !content.empty()) {
      const ssize_t n = ::write(fd_, content.data(), content.size());
      ok = n > 0 || (n < 0 && errno == EINTR);
      if (n > 0) content.remove_prefix(static_cast<size_t>(n));
    }
    ok = ok && ::lseek(fd_, 0, SEEK_SET) == 0;
    const int e = errno;
    if (!ok && fd_ >= 0) ::close(fd_);
    RWKV_CHECK(ok, IoError,
               "drawing a picture: no memory for gnuplot's input and output: ", std::strerror(e));
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  int fd() const { return fd_; }
  std::string text() const { return read_file(str("/proc/self/fd/", fd_)); }

 private:
  int fd_;
};

/// The last line that says something.
std::string last_line(std::string_view text) {
  const size_t end = text.find_last_not_of(" \t\r\n");
  if (end == std::string_view::npos) return "nothing";
  text = text.substr(0, end + 1);
  return std::string(text.substr(text.find_last_of('\n') + 1));
}

std::string quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? "''" : std::string(1, c);
  return out + "'";
}

bool is_svg(std::string_view bytes) {
  const size_t end = bytes.find_last_not_of(" \t\r\n");
  return end != std::string_view::npos && bytes.find("<svg") != std::string_view::npos &&
         bytes.substr(0, end + 1).ends_with("</svg>");
}

/// Signature, then chunks: length, four letters, data, CRC-32 of letters and data; the last is
/// IEND. PNG specification, 3rd edition, 5.
bool is_png(std::string_view bytes) {
  constexpr std::string_view kSignature = "\x89PNG\r\n\x1a\n";
  if (!bytes.starts_with(kSignature)) return false;
  bytes.remove_prefix(kSignature.size());
  const auto number = [&](size_t at) {
    uint32_t n = 0;
    for (size_t i = 0; i < 4; ++i) n = n << 8 | static_cast<unsigned char>(bytes[at + i]);
    return n;
  };
  while (bytes.size() >= 12) {
    const size_t length = number(0);
    if (length > bytes.size() - 12) return false;
    const std::string_view checked = bytes.substr(4, length + 4);
    if (crc32(std::as_bytes(std::span(checked))) != number(length + 8)) return false;
    bytes.remove_prefix(length + 12);
    if (checked.starts_with("IEND")) return bytes.empty();
  }
  return false;
}

}  // namespace

std::string gnuplot_output(std::string_view path) {
  return str("if (!exists('output')) output = ", quoted(path), "\nset output output\n");
}

void check_picture(std::string_view bytes, const std::string& path) {
  const bool png = path.ends_with(".png"), svg = path.ends_with(".svg");
  const bool whole = png ? is_png(bytes) : svg ? is_svg(bytes) : !bytes.empty();
  RWKV_CHECK(whole, IoError, "drawing ", path, ": found ", bytes.size(),
             " bytes that are no whole ",
             png   ? "PNG"
             : svg ? "SVG"
                   : "picture",
             "; expected one from its beginning to its end. Is the disk full?");
}

bool draw_picture(const std::string& path, const std::string& script) {
  AtomicFile out(path);
  const MemoryFile input(str("output = ", quoted(out.temp_path()), "\n", script)), said("");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input.fd(), STDIN_FILENO);
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO})
    posix_spawn_file_actions_adddup2(&actions, said.fd(), fd);
  std::string name = "gnuplot";
  char* const arguments[] = {name.data(), nullptr};
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, name.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error == ENOENT) return false;
  RWKV_CHECK(error == 0, IoError, "drawing ", path, ": starting gnuplot: ", std::strerror(error));
  int status = 0;
  pid_t ended = 0;
  do ended = ::waitpid(child, &status, 0);
  while (ended < 0 && errno == EINTR);
  const std::string words = said.text();
  RWKV_CHECK(ended == child && WIFEXITED(status), IoError, "drawing ", path,
             ": gnuplot was ended by signal ", WTERMSIG(status), "; it said: ", last_line(words));
  RWKV_CHECK(WEXITSTATUS(status) == 0, IoError, "drawing ", path, ": gnuplot ended with exit code ",
             WEXITSTATUS(status), ", expected 0; it said: ", last_line(words));
  std::fputs(words.c_str(), stderr);
  std::string bytes;
  try {
    bytes = read_file(out.temp_path());
  } catch (const IoError&) {  // it was not even begun, which the check says better
  }
  check_picture(bytes, path);
  out.commit();
  return true;
}

}  // namespace rwkv
