#include "data/io/trial.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

/// Bytes of address space that the process has now.
uint64_t address_space() {
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

/// In the child: reads with limits on time and memory, then tells how it went.
[[noreturn]] void report_on(const std::string& path, const std::function<void()>& read, int pipe) {
  constexpr uint64_t kMemory = uint64_t{256} << 20;  // besides a few times the file
  // Some damage makes the library loop. Slow disks take no time of the processor.
  constexpr uint64_t kSeconds = 10, kWallSeconds = 600, kBytesPerSecond = uint64_t{5} << 20;
  const int null = ::open("/dev/null", O_WRONLY);
  if (null >= 0) ::dup2(null, STDERR_FILENO);
  std::error_code ec;
  const uint64_t size = std::filesystem::file_size(path, ec), more = size / kBytesPerSecond;
  const rlim_t most = address_space() + kMemory + 4 * size, seconds = kSeconds + more;
  const rlimit none{0, 0}, memory{most, most}, time{seconds, seconds};
  ::setrlimit(RLIMIT_CORE, &none);
  ::setrlimit(RLIMIT_AS, &memory);
  ::setrlimit(RLIMIT_CPU, &time);
  ::signal(SIGALRM, SIG_DFL);
  ::signal(SIGXCPU, SIG_DFL);
  ::alarm(static_cast<unsigned>(std::min<uint64_t>(kWallSeconds + more, UINT_MAX)));
  std::string message;
  try {
    read();
  } catch (const std::exception& e) {
    message = e.what();
    if (message.empty()) message = "it cannot be read";
  }
  if (::write(pipe, message.data(), message.size()) < 0) ::_exit(1);
  ::_exit(0);
}

}  // namespace

void try_in_child(const std::string& path, const std::function<void()>& read) {
  int ends[2];
  RWKV_CHECK(::pipe(ends) == 0, IoError, "opening ", path, ": no pipe can be made");
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) report_on(path, read, ends[1]);
  ::close(ends[1]);
  std::string message;
  char buffer[4096];
  for (ssize_t n; child > 0 && (n = ::read(ends[0], buffer, sizeof buffer)) != 0;) {
    if (n < 0 && errno != EINTR) break;
    if (n > 0) message.append(buffer, static_cast<size_t>(n));
  }
  ::close(ends[0]);
  RWKV_CHECK(child > 0, IoError, "opening ", path, ": no process can be made to try it in");
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  RWKV_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, IoError, "opening ", path,
             ": the HDF5 library fails on it; the file is damaged");
  if (!message.empty()) throw IoError(message);
}

}  // namespace rwkv
