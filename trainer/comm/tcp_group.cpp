#include "trainer/comm/tcp_group.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>

namespace rwkv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPorts = 8;  ///< tried from launch.port on
constexpr uint32_t kMagic = 0x6772796c;

constexpr uint32_t kLongestCause = 4096;

enum FrameKind : uint32_t { kData = 1, kAbort = 2 };

/// Ahead of every payload.
struct Frame {
  uint32_t magic = kMagic, kind = kData;
  int32_t code = 0;  ///< kAbort: the exit code
  uint32_t bytes = 0;
};

/// What a rank says first, and what rank 0 answers.
struct Hello {
  uint32_t magic = kMagic;
  int32_t rank = 0, size = 0;
  std::array<char, 64> host{};
};

std::string host_name() {
  std::array<char, 64> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

Hello hello_of(int rank, int size) {
  Hello h;
  h.rank = rank;
  h.size = size;
  const std::string host = host_name();
  std::strncpy(h.host.data(), host.c_str(), h.host.size() - 1);
  return h;
}

class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { reset(); }
  Socket(Socket&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  Socket& operator=(Socket&& o) noexcept {
    std::swap(fd_, o.fd_);
    return *this;
  }
  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_ = -1;
};

/// False if the connection ended, or the deadline passed.
bool receive(int fd, void* data, size_t bytes, Clock::time_point deadline) {
  auto* p = static_cast<char*>(data);
  while (bytes > 0) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    pollfd one{fd, POLLIN, 0};
    const int ready = ::poll(&one, 1, static_cast<int>(std::min<int64_t>(left, 60000)));
    if (ready < 0 && errno != EINTR) return false;
    if (ready <= 0) continue;
    const ssize_t n = ::recv(fd, p, bytes, 0);
    if (n == 0 || (n < 0 && errno != EINTR)) return false;
    if (n > 0) p += n, bytes -= static_cast<size_t>(n);
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

Clock::time_point in_seconds(int seconds) {
  return Clock::now() + std::chrono::seconds(seconds);
}
const Clock::time_point kForever = Clock::time_point::max() - std::chrono::hours(1);

void set_option(int fd, int level, int name, int value) {
  ::setsockopt(fd, level, name, &value, sizeof value);  // without it things are slower to notice
}

void watch_silence(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, kSilenceSeconds / 3);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, kSilenceSeconds / 6);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, kSilenceSeconds * 1000);
}

/// Any address of this machine, or -1.
int listen_on(int port, bool local) {
  for (const int family : {AF_INET6, AF_INET}) {
    if (local && family == AF_INET6) continue;
    Socket s(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!s) continue;
    set_option(s.fd(), SOL_SOCKET, SO_REUSEADDR, 1);
    int bound = -1;
    if (family == AF_INET6) {
      set_option(s.fd(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
      sockaddr_in6 a{};
      a.sin6_family = AF_INET6;
      a.sin6_addr = in6addr_any;
      a.sin6_port = htons(static_cast<uint16_t>(port));
      bound = ::bind(s.fd(), reinterpret_cast<const sockaddr*>(&a), sizeof a);
    } else {
      sockaddr_in a{};
      a.sin_family = AF_INET;
      a.sin_addr.s_addr = htonl(local ? INADDR_LOOPBACK : INADDR_ANY);
      a.sin_port = htons(static_cast<uint16_t>(port));
      bound = ::bind(s.fd(), reinterpret_cast<const sockaddr*>(&a), sizeof a);
    }
    if (bound == 0 && ::listen(s.fd(), 128) == 0) {
      return s.release();
    }
    if (bound != 0 && errno == EADDRINUSE) return -1;
  }
  return -1;
}

Socket connect_to(const std::string& address, int port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return {};
  Socket connected;
  for (const addrinfo* a = found; a != nullptr && !connected; a = a->ai_next) {
    Socket s(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    if (s && ::connect(s.fd(), a->ai_addr, a->ai_addrlen) == 0) connected = std::move(s);
  }
  ::freeaddrinfo(found);
  return connected;
}

class TcpGroup final : public HostGroup {
 public:
  /// peers: of rank 0 by rank (its own is empty), of others only rank 0's.
  TcpGroup(int rank, int size, std::vector<Socket> peers, std::vector<std::string> hosts)
      : HostGroup(rank, size), peers_(std::move(peers)), hosts_(std::move(hosts)) {
    watcher_ = std::thread([this] { watch(); });
  }

  ~TcpGroup() override {
    // From here on a closed connection is the ordinary end: nobody says good-bye before all are
    // here, and nobody closes before it knows that.
    if (!failing_) {
      leaving_ = true;
      barrier();
    }
    leaving_ = true;
    watcher_.join();
  }

  void all_gather(const void* in, size_t bytes, void* out) override {
    auto* all = static_cast<char*>(out);
    std::memmove(all + static_cast<size_t>(rank()) * bytes, in, bytes);
    const auto everything = bytes * static_cast<size_t>(size());
    if (rank() != 0) {
      put(0, in, bytes);
      take(0, out, everything);
      return;
    }
    for (int r = 1; r < size(); ++r) take(r, all + static_cast<size_t>(r) * bytes, bytes);
    for (int r = 1; r < size(); ++r) put(r, out, everything);
  }

  void broadcast(void* data, size_t bytes) override {
    if (rank() != 0) {
      take(0, data, bytes);
      return;
    }
    for (int r = 1; r < size(); ++r) put(r, data, bytes);
  }

  [[noreturn]] void abort(const std::string& cause, int exit_code) override {
    if (failing_.exchange(true)) wait_for_the_end();
    const std::string words = cause.substr(0, kLongestCause);
    const Frame f{.kind = kAbort, .code = exit_code, .bytes = static_cast<uint32_t>(words.size())};
    for (size_t r = 0; r < peers_.size(); ++r) {
      if (!peers_[r]) continue;
      send_all(peers_[r].fd(), &f, sizeof f);
      send_all(peers_[r].fd(), words.data(), words.size());
      ::shutdown(peers_[r].fd(), SHUT_WR);
    }
    if (rank() == 0) {
      say(cause);
    } else {
      // Rank 0 reads the cause and closes; without it somebody has to say it.
      char rest[256];
      const auto deadline = in_seconds(10);
      bool closed = false;
      while (!closed && Clock::now() < deadline) {
        pollfd one{peers_[0].fd(), POLLIN, 0};
        if (::poll(&one, 1, 200) > 0) closed = ::recv(peers_[0].fd(), rest, sizeof rest, 0) <= 0;
      }
      if (!closed) say(str("rank ", rank(), ": ", cause));
    }
    ::_exit(exit_code);
  }

 private:
  void put(int r, const void* data, size_t bytes) {
    const Frame f{.bytes = static_cast<uint32_t>(bytes)};
    const int fd = peers_[static_cast<size_t>(r)].fd();
    if (!send_all(fd, &f, sizeof f) || !send_all(fd, data, bytes)) lost(r);
  }

  void take(int r, void* data, size_t bytes) {
    Frame f;
    const int fd = peers_[static_cast<size_t>(r)].fd();
    if (!receive(fd, &f, sizeof f, kForever)) lost(r);
    RWKV_ASSERT(f.magic == kMagic, "a foreign message from rank ", r);
    if (f.kind == kAbort) {
      std::string cause(std::min(f.bytes, kLongestCause), '\0');
      receive(fd, cause.data(), cause.size(), in_seconds(5));
      ended_by(r, f.code, cause);
    }
    RWKV_ASSERT(f.bytes == bytes, "rank ", r, " sent ", f.bytes, " bytes, expected ", bytes);
    if (!receive(fd, data, bytes, kForever)) lost(r);
  }

  std::string name_of(int r) const {
    return str("rank ", r, " (", hosts_[static_cast<size_t>(r)], ")");
  }

  static void say(const std::string& text) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: error: %s\n", program_invocation_short_name, text.c_str());
    std::fflush(stderr);
  }

  [[noreturn]] static void wait_for_the_end() {
    for (;;) ::pause();
  }

  /// The connection ended without a word.
  [[noreturn]] void lost(int r) {
    end(str(name_of(r),
            " is gone: its connection ended (killed, crashed, or its machine is out of "
            "reach); --resume continues from the last checkpoint"),
        kExitLostRank);
  }

  /// Rank r said that it ends, and why.
  [[noreturn]] void ended_by(int r, int code, const std::string& cause) {
    if (rank() != 0) {
      if (failing_.exchange(true)) wait_for_the_end();
      ::_exit(code);  // rank 0 has said it
    }
    // What fails everywhere is said once: this process is about to fail in the same way.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    end(str(name_of(r), ": ", cause), code);
  }

  [[noreturn]] void end(const std::string& cause, int code) {
    if (rank() == 0) abort(cause, code);
    if (failing_.exchange(true)) wait_for_the_end();
    say(str("rank ", rank(), ": ", cause));
    ::_exit(code);
  }

  void watch() {
    sigset_t all;  // signals are the main thread's
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    std::vector<pollfd> fds;
    std::vector<int> ranks;
    for (size_t r = 0; r < peers_.size(); ++r)
      if (peers_[r]) {
        fds.push_back({peers_[r].fd(), POLLRDHUP, 0});
        ranks.push_back(static_cast<int>(r));
      }
    while (!leaving_ && !failing_) {
      if (::poll(fds.data(), fds.size(), 200) <= 0) continue;
      for (size_t i = 0; i < fds.size() && !leaving_ && !failing_; ++i) {
        if (fds[i].revents == 0) continue;
        // Last words are looked at and left there: the main thread may be about to read them, and
        // ordinary data may still be in front of them.
        std::vector<char> words(sizeof(Frame) + kLongestCause);
        const ssize_t n = ::recv(fds[i].fd, words.data(), words.size(), MSG_PEEK | MSG_DONTWAIT);
        Frame f;
        if (n >= static_cast<ssize_t>(sizeof f)) std::memcpy(&f, words.data(), sizeof f);
        if (n >= static_cast<ssize_t>(sizeof f) && f.magic == kMagic && f.kind == kAbort)
          ended_by(ranks[i], f.code,
                   std::string(words.data() + sizeof f, static_cast<size_t>(n) - sizeof f));
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        if (!leaving_ && !failing_) lost(ranks[i]);
      }
    }
  }

  std::vector<Socket> peers_;
  std::vector<std::string> hosts_;
  std::atomic<bool> leaving_ = false, failing_ = false;
  std::thread watcher_;
};

std::unique_ptr<HostGroup> meet_as_first(const Launch& l, int patience) {
  Socket listener(l.listening_fd);
  for (int p = 0; p < kPorts && !listener; ++p) listener = Socket(listen_on(l.port + p, false));
  RWKV_CHECK(listener, ConfigError, "waiting for ", l.size - 1, " ranks: none of the ports ",
             l.port, " to ", l.port + kPorts - 1, " is free here (MASTER_PORT)");
  std::vector<Socket> peers(static_cast<size_t>(l.size));
  std::vector<std::string> hosts(static_cast<size_t>(l.size));
  hosts[0] = host_name();
  const auto deadline = in_seconds(patience);
  int missing = l.size - 1;
  while (missing > 0) {
    if (Clock::now() >= deadline) {
      std::string names;
      for (int r = 1; r < l.size; ++r)
        if (!peers[static_cast<size_t>(r)]) names += str(names.empty() ? "" : ", ", r);
      throw ConfigError(str("starting ", l.size, " ranks: after ", patience,
                            " s these have not come: ", names,
                            "; do all have the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE?"));
    }
    pollfd one{listener.fd(), POLLIN, 0};
    if (::poll(&one, 1, 500) <= 0) continue;
    Socket s(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    Hello h;
    if (!s || !receive(s.fd(), &h, sizeof h, in_seconds(5)) || h.magic != kMagic) continue;
    const Hello answer = hello_of(0, l.size);
    send_all(s.fd(), &answer, sizeof answer);
    h.host.back() = '\0';
    RWKV_CHECK(h.size == l.size, ConfigError, "starting ", l.size, " ranks: a rank on ",
               h.host.data(), " was told that there are ", h.size, " (WORLD_SIZE)");
    RWKV_CHECK(h.rank > 0 && h.rank < l.size && !peers[static_cast<size_t>(h.rank)], ConfigError,
               "starting ", l.size, " ranks: a process on ", h.host.data(),
               " says that it is rank ", h.rank,
               h.rank > 0 && h.rank < l.size ? ", as another one has" : "",
               "; every process needs its own RANK from 0 to ", l.size - 1);
    watch_silence(s.fd());
    hosts[static_cast<size_t>(h.rank)] = h.host.data();
    peers[static_cast<size_t>(h.rank)] = std::move(s);
    --missing;
  }
  return std::make_unique<TcpGroup>(0, l.size, std::move(peers), std::move(hosts));
}

std::unique_ptr<HostGroup> meet(const Launch& l, int patience) {
  const auto deadline = in_seconds(patience);
  while (Clock::now() < deadline) {
    for (int p = 0; p < kPorts; ++p) {
      Socket s = connect_to(l.address, l.port + p);
      if (!s) continue;
      const Hello mine = hello_of(l.rank, l.size);
      Hello h;
      if (!send_all(s.fd(), &mine, sizeof mine) || !receive(s.fd(), &h, sizeof h, in_seconds(3)) ||
          h.magic != kMagic)
        continue;
      RWKV_CHECK(h.size == l.size, ConfigError, "joining ", l.address, ":", l.port + p,
                 ": WORLD_SIZE is ", l.size, " here and ", h.size, " there");
      watch_silence(s.fd());
      std::vector<Socket> peers;
      peers.push_back(std::move(s));
      h.host.back() = '\0';
      return std::make_unique<TcpGroup>(l.rank, l.size, std::move(peers),
                                        std::vector<std::string>{h.host.data()});
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  throw ConfigError(str("joining rank 0 at ", l.address, ":", l.port, " as rank ", l.rank, " of ",
                        l.size, ": nobody answered for ", patience,
                        " s; is rank 0 running, and are MASTER_ADDR and MASTER_PORT its own?"));
}

}  // namespace

int listen_locally(int* port) {
  const int fd = listen_on(0, true);
  RWKV_CHECK(fd >= 0, ConfigError, "starting local ranks: no port to listen on");
  sockaddr_in a{};
  socklen_t length = sizeof a;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length);
  *port = ntohs(a.sin_port);
  return fd;
}

std::unique_ptr<HostGroup> open_tcp_group(const Launch& launch, int patience_seconds) {
  return launch.rank == 0 ? meet_as_first(launch, patience_seconds)
                          : meet(launch, patience_seconds);
}

}  // namespace rwkv
