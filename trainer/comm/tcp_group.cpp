#include "trainer/comm/tcp_group.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "data/io/interrupt.h"
#include "trainer/signals.h"

namespace rwkv {
namespace {

using std::chrono::milliseconds;

/// The other end of a connection.
struct Peer {
  int rank = 0;
  std::string host;
  Socket socket;
  /// Whoever sends a frame: the main thread data, the reader signs of life, either last words.
  std::timed_mutex sending;

  // Guarded by the group's mutex.
  std::deque<std::vector<char>> inbox;  ///< data that the main thread has not taken yet
  bool closed = false;
  std::string how;  ///< it was closed

  // Of the reader.
  std::vector<char> partial;  ///< received, not yet a whole frame
  double silent_s = 0;
};

class TcpGroup final : public HostGroup {
 public:
  TcpGroup(int rank, int size, Meeting meeting, const TcpLimits& limits)
      : HostGroup(rank, size), limits_(limits) {
    for (size_t i = 0; i < meeting.peers.size(); ++i) {
      auto p = std::make_unique<Peer>();
      p->rank = static_cast<int>(i);
      p->host = meeting.hosts[i];
      p->socket = std::move(meeting.peers[i]);
      p->closed = !p->socket;
      peers_.push_back(std::move(p));
    }
    reader_ = std::thread([this] { read_all(); });
  }

  ~TcpGroup() override {
    // From here on a closed connection is the ordinary end: nobody hangs up before all are here.
    // Both sides read on until the other one has hung up, since a connection that is closed with
    // something unread takes back what it sent last.
    if (!failing_) {
      leaving_ = true;
      barrier();
      hang_up();
    }
    ended_ = true;
    reader_.join();
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
    const int signal = signal_of(exit_code);
    if (rank() == 0 && signal == 0) say(cause);
    for (const auto& p : peers_) send_last_words(*p, exit_code, cause);
    // Rank 0 leaves when the others have heard it, the others when rank 0 has: a process that ends
    // with something unread would take its last words back.
    const bool heard = wait_until_closed(rank() == 0 ? 2 : 10);
    if (signal != 0 && (rank() == 0 || !heard)) end_interrupted(signal);
    if (rank() != 0 && !heard) say(str("rank ", rank(), ": ", cause));
    ::_exit(exit_code);
  }

 private:
  /// 0: the exit code of an error.
  static int signal_of(int exit_code) { return exit_code > 128 ? exit_code - 128 : 0; }

  Peer& peer(int r) const { return *peers_[static_cast<size_t>(r)]; }

  void put(int r, const void* data, size_t bytes) {
    Peer& p = peer(r);
    const Frame f{.bytes = static_cast<uint32_t>(bytes)};
    bool sent = false;
    {
      const std::lock_guard lock(p.sending);
      sent = send_all(p.socket.fd(), &f, sizeof f) && send_all(p.socket.fd(), data, bytes);
    }
    if (sent) return;
    // The reader may find last words in front of the end.
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, std::chrono::seconds(2), [&] { return p.closed; });
    const std::string how = p.closed ? p.how : "it takes no data any more";
    lock.unlock();
    lost(p, how);
  }

  void take(int r, void* data, size_t bytes) {
    Peer& p = peer(r);
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [&] { return !p.inbox.empty() || p.closed; });
    if (p.inbox.empty()) {
      const std::string how = p.how;
      lock.unlock();
      lost(p, how);
    }
    const std::vector<char> got = std::move(p.inbox.front());
    p.inbox.pop_front();
    lock.unlock();
    RWKV_ASSERT(got.size() == bytes, "rank ", r, " sent ", got.size(), " bytes, expected ", bytes);
    std::memcpy(data, got.data(), bytes);
  }

  void hang_up() {
    for (const auto& p : peers_) {
      if (!p->socket) continue;
      const std::lock_guard lock(p->sending);
      quiet_ = true;
      ::shutdown(p->socket.fd(), SHUT_WR);
    }
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, std::chrono::seconds(5), [&] {
      return std::ranges::all_of(peers_, [](const auto& p) { return p->closed; });
    });
  }

  static std::string name_of(const Peer& p) { return str("rank ", p.rank, " (", p.host, ")"); }

  static void say(const std::string& text) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: error: %s\n", program_invocation_short_name, text.c_str());
    std::fflush(stderr);
  }

  [[noreturn]] static void wait_for_the_end() {
    for (;;) ::pause();
  }

  static void send_last_words(Peer& p, int code, const std::string& cause) {
    if (!p.socket) return;
    limit_sending(p.socket.fd(), 2);
    // Within a frame that does not get on nothing can be said.
    if (std::unique_lock lock(p.sending, std::chrono::seconds(1)); lock)
      send_frame(p.socket.fd(), FrameKind::kAbort, code, cause);
    ::shutdown(p.socket.fd(), SHUT_WR);
  }

  /// True when all others have closed.
  bool wait_until_closed(double seconds) const {
    const auto deadline = in_seconds(seconds);
    for (;;) {
      size_t open = 0;
      for (const auto& p : peers_) {
        pollfd one{p->socket.fd(), POLLRDHUP, 0};
        if (p->socket && ::poll(&one, 1, 0) == 0) ++open;
      }
      if (open == 0) return true;
      if (SocketClock::now() >= deadline) return false;
      std::this_thread::sleep_for(milliseconds(20));
    }
  }

  /// A rank is gone without a word.
  [[noreturn]] void lost(const Peer& p, const std::string& how) {
    end(str(name_of(p), " is gone: ", how, "; --resume continues from the last checkpoint"),
        kExitLostRank);
  }

  /// Rank r said that it ends, and why.
  [[noreturn]] void ended_by(const Peer& p, int code, const std::string& cause) {
    if (rank() != 0) {
      if (failing_.exchange(true)) wait_for_the_end();
      ::shutdown(p.socket.fd(), SHUT_RDWR);
      ::_exit(code);  // rank 0 has said it
    }
    if (signal_of(code) != 0) abort(cause, code);
    // What fails everywhere is said once: this process is about to fail in the same way.
    std::this_thread::sleep_for(milliseconds(300));
    end(str(name_of(p), ": ", cause), code);
  }

  [[noreturn]] void end(const std::string& cause, int code) {
    if (rank() == 0) abort(cause, code);
    if (failing_.exchange(true)) wait_for_the_end();
    say(str("rank ", rank(), ": ", cause));
    ::_exit(code);
  }

  /// The thread that reads.
  void read_all() {
    sigset_t all;  // signals are the main thread's
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    auto before = SocketClock::now();
    double since_sign = 0;
    std::vector<pollfd> fds;
    std::vector<Peer*> open;
    while (!ended_ && !failing_) {
      if (const int signal = leaving_ ? 0 : take_held_signal(); signal != 0)
        abort("interrupted", 128 + signal);
      fds.clear();
      open.clear();
      for (const auto& p : peers_)
        if (!p->closed) {  // only this thread sets it
          fds.push_back({p->socket.fd(), POLLIN, 0});
          open.push_back(p.get());
        }
      const int ready = ::poll(fds.data(), fds.size(), 100);
      const auto now = SocketClock::now();
      // A process that was stopped itself has heard nobody, whoever lives.
      const double awake = std::min(1.0, std::chrono::duration<double>(now - before).count());
      before = now;
      since_sign += awake;
      const bool signs = limits_.silence > 0 && since_sign >= limits_.silence / 6.0;
      if (signs) since_sign = 0;
      for (size_t i = 0; i < open.size() && !failing_; ++i) {
        Peer& p = *open[i];
        p.silent_s += awake;
        if (ready > 0 && fds[i].revents != 0) read_from(p);
        if (signs) show_life(p);
        if (limits_.silence > 0 && p.silent_s > limits_.silence && !p.closed)
          lost(p, str("no sign of life for ", limits_.silence,
                      " s (stopped, or its machine is out of reach)"));
      }
    }
  }

  void read_from(Peer& p) {
    char buffer[65536];
    const ssize_t n = ::recv(p.socket.fd(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
      const bool silent = n < 0 && errno != ECONNRESET && errno != EPIPE;
      close(p, silent ? str("its machine is out of reach (", std::strerror(errno), ")")
                      : "its connection ended (killed, or crashed)");
      return;
    }
    p.silent_s = 0;
    p.partial.insert(p.partial.end(), buffer, buffer + n);
    size_t at = 0;
    for (Frame f; p.partial.size() - at >= sizeof f;) {
      std::memcpy(&f, p.partial.data() + at, sizeof f);
      if (f.magic != Frame::kMagic) {
        close(p, "what it sends is no message of this program");
        return;
      }
      if (p.partial.size() - at - sizeof f < f.bytes) break;
      const char* payload = p.partial.data() + at + sizeof f;
      if (f.kind == FrameKind::kAbort) ended_by(p, f.code, std::string(payload, f.bytes));
      if (f.kind == FrameKind::kData) {
        const std::lock_guard lock(mutex_);
        p.inbox.emplace_back(payload, payload + f.bytes);
        arrived_.notify_all();
      }
      at += sizeof f + f.bytes;
    }
    p.partial.erase(p.partial.begin(), p.partial.begin() + static_cast<std::ptrdiff_t>(at));
  }

  void close(Peer& p, const std::string& how) {
    {
      const std::lock_guard lock(mutex_);
      p.closed = true;
      p.how = how;
    }
    arrived_.notify_all();
    if (!leaving_ && !failing_) lost(p, how);
  }

  /// Never waits: a peer that is being sent to, or that takes nothing, needs no sign.
  void show_life(Peer& p) {
    const std::unique_lock lock(p.sending, std::try_to_lock);
    if (!lock || quiet_ || p.closed) return;
    pollfd one{p.socket.fd(), POLLOUT, 0};
    if (::poll(&one, 1, 0) != 1 || (one.revents & POLLOUT) == 0) return;
    const Frame f{.kind = FrameKind::kLifeSign};
    send_all(p.socket.fd(), &f, sizeof f);
  }

  const TcpLimits limits_;
  std::vector<std::unique_ptr<Peer>> peers_;  ///< of rank 0 by rank; of others only rank 0
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::atomic<bool> leaving_ = false, quiet_ = false, failing_ = false, ended_ = false;
  std::thread reader_;
};

}  // namespace

int listen_locally(int* port) {
  Socket s = listen_on(0, true);
  RWKV_CHECK(s, ConfigError, "starting local ranks: no port to listen on");
  sockaddr_in a{};
  socklen_t length = sizeof a;
  ::getsockname(s.fd(), reinterpret_cast<sockaddr*>(&a), &length);
  *port = ntohs(a.sin_port);
  return s.release();
}

std::unique_ptr<HostGroup> open_tcp_group(const Launch& launch, const TcpLimits& limits) {
  return std::make_unique<TcpGroup>(launch.rank, launch.size, meet_ranks(launch, limits), limits);
}

}  // namespace rwkv
