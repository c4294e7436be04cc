#include "trainer/comm/sockets.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

void set_option(int fd, int level, int name, int value) {
  ::setsockopt(fd, level, name, &value, sizeof value);  // without it things are slower to notice
}

int milliseconds_until(SocketClock::time_point deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - SocketClock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 60000));
}

/// "connection refused": in the middle of a sentence.
std::string error_text(int error) {
  std::string text = std::strerror(error);
  if (!text.empty()) text[0] = static_cast<char>(std::tolower(text[0]));
  return text;
}

/// Connects without waiting longer than to the deadline; 0 or an errno.
int connect_until(int fd, const sockaddr* address, socklen_t length,
                  SocketClock::time_point deadline) {
  const int flags = ::fcntl(fd, F_GETFL);
  ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  int error = ::connect(fd, address, length) == 0 ? 0 : errno;
  while (error == EINPROGRESS || error == EINTR) {
    pollfd one{fd, POLLOUT, 0};
    const int wait = milliseconds_until(deadline);
    if (wait == 0) return ETIMEDOUT;
    if (::poll(&one, 1, wait) <= 0) continue;
    socklen_t size = sizeof error;
    if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
  }
  ::fcntl(fd, F_SETFL, flags);
  return error;
}

/// A connection to a free port of this machine may come out of that very port and meet itself.
bool meets_itself(int fd) {
  sockaddr_storage here{}, there{};
  socklen_t a = sizeof here, b = sizeof there;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&here), &a) != 0 ||
      ::getpeername(fd, reinterpret_cast<sockaddr*>(&there), &b) != 0)
    return false;
  if (a != b || std::memcmp(&here, &there, a) != 0) return false;
  const linger at_once{1, 0};  // closed as usual it would keep the port for a minute
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  return true;
}

bool bind_and_listen(int fd, int family, int port, bool local) {
  constexpr int kWaiting = 1024;  // the system takes less if it must
  if (family == AF_INET6) {
    set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    sockaddr_in6 a{};
    a.sin6_family = AF_INET6;
    a.sin6_addr = in6addr_any;
    a.sin6_port = htons(static_cast<uint16_t>(port));
    return ::bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0 &&
           ::listen(fd, kWaiting) == 0;
  }
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(local ? INADDR_LOOPBACK : INADDR_ANY);
  a.sin_port = htons(static_cast<uint16_t>(port));
  return ::bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0 &&
         ::listen(fd, kWaiting) == 0;
}

}  // namespace

void Socket::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

SocketClock::time_point in_seconds(double seconds) {
  return SocketClock::now() +
         std::chrono::duration_cast<SocketClock::duration>(std::chrono::duration<double>(seconds));
}

bool receive(int fd, void* data, size_t bytes, SocketClock::time_point deadline, std::string* why) {
  auto* p = static_cast<char*>(data);
  while (bytes > 0) {
    const int wait = milliseconds_until(deadline);
    if (wait == 0) {
      *why = "no answer";
      return false;
    }
    pollfd one{fd, POLLIN, 0};
    if (::poll(&one, 1, wait) <= 0) continue;
    const ssize_t n = ::recv(fd, p, bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      *why = n == 0 ? "connection closed" : error_text(errno);
      return false;
    }
    p += n, bytes -= static_cast<size_t>(n);
  }
  return true;
}

bool send_all(int fd, const void* data, size_t bytes) {
  const auto* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::send(fd, p, bytes, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    p += n, bytes -= static_cast<size_t>(n);
  }
  return true;
}

bool send_frame(int fd, FrameKind kind, int code, const std::string& text) {
  const std::string words = text.substr(0, kLongestCause);
  const Frame f{.kind = kind, .code = code, .bytes = static_cast<uint32_t>(words.size())};
  std::string all(reinterpret_cast<const char*>(&f), sizeof f);
  all += words;
  return send_all(fd, all.data(), all.size());
}

void watch_silence(int fd, int seconds) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  if (seconds <= 0) return;
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, std::max(1, seconds / 3));
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, std::max(1, seconds / 6));
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, seconds * 1000);
}

void limit_sending(int fd, int seconds) {
  const timeval t{seconds, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
}

Socket listen_on(int port, bool local) {
  for (const int family : {AF_INET6, AF_INET}) {
    if (local && family == AF_INET6) continue;
    Socket s(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!s) continue;
    set_option(s.fd(), SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind_and_listen(s.fd(), family, port, local)) return s;
    if (errno == EADDRINUSE) return {};
  }
  return {};
}

Socket connect_to(const std::string& address, int port, double seconds, std::string* why) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  const int unknown = ::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (unknown != 0) {
    *why = str("unknown name: ", ::gai_strerror(unknown));
    return {};
  }
  Socket connected;
  for (const addrinfo* a = found; a != nullptr && !connected; a = a->ai_next) {
    Socket s(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    int error = s ? connect_until(s.fd(), a->ai_addr, a->ai_addrlen, in_seconds(seconds)) : errno;
    if (error == 0 && meets_itself(s.fd())) error = ECONNREFUSED;
    if (error == 0)
      connected = std::move(s);
    else
      *why = error == ETIMEDOUT ? "no answer (a firewall?)" : error_text(error);
  }
  ::freeaddrinfo(found);
  return connected;
}

std::string host_name() {
  std::array<char, 64> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace rwkv
