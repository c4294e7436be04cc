#include "inference/server/sockets.h"

#include <dirent.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

/// Files that are no connections: a GPU's, libraries', standard streams.
constexpr int64_t kOtherFiles = 128;

std::string reason(int error) {
  switch (error) {
    case EADDRINUSE:
      return "the port is in use, perhaps by another rwkv-serve; choose another --port (0: any "
             "free one)";
    case EADDRNOTAVAIL:
      return "the address is not one of this machine; choose another --host (0.0.0.0: all "
             "addresses)";
    case EACCES:
      return "ports below 1024 are reserved; choose another --port";
    default:
      return std::strerror(error);
  }
}

/// The port of a socket of TCP; -1 for anything else.
int local_port(int fd) {
  sockaddr_storage a{};
  socklen_t length = sizeof a;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length) != 0) return -1;
  if (a.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in*>(&a)->sin_port);
  if (a.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6*>(&a)->sin6_port);
  return -1;
}

}  // namespace

void check_address(const std::string& host, int port) {
  const std::string what = str("listening on ", host, " port ", port, ": ");
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  if (const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found))
    throw IoError(str(what, ::gai_strerror(error), "; choose another --host"));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> all(found, &::freeaddrinfo);
  int error = 0;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    const int fd = ::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0) {
      error = errno;
      continue;
    }
    // As the server does: connections of one that has just ended are no obstacle.
    const int yes = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    error = ::bind(fd, a->ai_addr, a->ai_addrlen) == 0 && ::listen(fd, 1) == 0 ? 0 : errno;
    ::close(fd);
    if (error == 0) return;
  }
  throw IoError(what + reason(error));
}

int64_t allow_connections(int64_t wanted) {
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0) return wanted;
  const auto needed = static_cast<rlim_t>(wanted + kOtherFiles);
  if (files.rlim_cur < needed) {
    rlimit more = files;
    more.rlim_cur = std::min(needed, files.rlim_max);
    if (::setrlimit(RLIMIT_NOFILE, &more) == 0) files = more;
  }
  if (files.rlim_cur >= needed) return wanted;
  return std::max<int64_t>(static_cast<int64_t>(files.rlim_cur) - kOtherFiles, 1);
}

void end_connections(int port, bool writing) {
  DIR* open_files = ::opendir("/proc/self/fd");
  if (open_files == nullptr) return;
  while (const dirent* entry = ::readdir(open_files)) {
    const int fd = std::atoi(entry->d_name);
    sockaddr_storage peer{};
    socklen_t length = sizeof peer;
    if (fd > 2 && local_port(fd) == port &&
        ::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) == 0)
      ::shutdown(fd, writing ? SHUT_RDWR : SHUT_RD);
  }
  ::closedir(open_files);
}

}  // namespace rwkv
