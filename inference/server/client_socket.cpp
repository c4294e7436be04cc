#include "inference/server/client_socket.h"

#include <dirent.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>

namespace rwkv {
namespace {

int port_of(const sockaddr_storage& a) {
  if (a.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(a).sin_port);
  if (a.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(a).sin6_port);
  return -1;
}

bool leads_to(int fd, const std::string& address, int port) {
  sockaddr_storage peer{};
  socklen_t length = sizeof peer;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0 || port_of(peer) != port)
    return false;
  char host[NI_MAXHOST];
  return ::getnameinfo(reinterpret_cast<sockaddr*>(&peer), length, host, sizeof host, nullptr, 0,
                       NI_NUMERICHOST) == 0 &&
         address == host;
}

}  // namespace

ClientSocket::ClientSocket(const std::string& address, int port) {
  DIR* open_files = ::opendir("/proc/self/fd");
  if (open_files == nullptr) return;
  while (const dirent* entry = ::readdir(open_files)) {
    const int fd = std::atoi(entry->d_name);
    if (fd > 2 && leads_to(fd, address, port)) {
      fd_ = fd;
      break;
    }
  }
  ::closedir(open_files);
}

bool ClientSocket::gone() const {
  if (fd_ < 0) return false;
  char byte = 0;
  const ssize_t n = ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

void ClientSocket::end_reading() const {
  if (fd_ >= 0) ::shutdown(fd_, SHUT_RD);
}

}  // namespace rwkv
