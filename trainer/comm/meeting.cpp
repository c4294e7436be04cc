#include "trainer/comm/meeting.h"

#include <errno.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "data/io/sha256.h"

namespace rwkv {
namespace {

constexpr int kPorts = 8;  ///< tried from launch.port on
/// Of Hello and Frame; everything behind the first two numbers of Hello may change with it.
constexpr uint32_t kProtocol = 2;
constexpr double kHelloSeconds = 5;  ///< for a connection to say what it is
constexpr int kExitLost = 4;

/// What a rank says first.
struct Hello {
  uint32_t magic = Frame::kMagic, protocol = kProtocol;
  int32_t rank = 0, size = 0;
  std::array<char, 72> job{};  ///< a hash, since it may be a secret
  std::array<char, 64> job_name{}, host{};
};

template <size_t N>
void set_text(std::array<char, N>& to, const std::string& text) {
  std::memcpy(to.data(), text.data(), std::min(text.size(), N - 1));
}

template <size_t N>
std::string text_of(const std::array<char, N>& from) {
  return {from.data(), strnlen(from.data(), N)};
}

std::string job_hash(const Launch& l) {
  return sha256_hex("greylag ranks, " + l.job);
}

std::string shown(const std::string& job_name) {
  return job_name.empty() ? "a job without a name" : "job " + job_name;
}

/// For ranks that a variable of one machine keeps apart.
constexpr const char* kSameJob =
    " (if that is this job, set RWKV_JOB_TOKEN to the same text for all ranks)";

/// The last port that is tried.
int last_port(const Launch& l) {
  return std::min(l.port + kPorts - 1, 65535);
}

/// "1-3, 7"
std::string ranges(const std::vector<int>& sorted) {
  std::string out;
  for (size_t i = 0; i < sorted.size();) {
    size_t end = i + 1;
    while (end < sorted.size() && sorted[end] == sorted[end - 1] + 1) ++end;
    out += str(out.empty() ? "" : ", ", sorted[i]);
    if (end - i > 1) out += str(end - i == 2 ? ", " : "-", sorted[end - 1]);
    i = end;
  }
  return out;
}

/// Ranks beyond the usual limit of open files.
void allow_connections(int count) {
  rlimit files{};
  const auto wanted = static_cast<rlim_t>(count) + 512;
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur >= wanted) return;
  files.rlim_cur = std::min(files.rlim_max, wanted);
  ::setrlimit(RLIMIT_NOFILE, &files);  // without it accept() fails, and says so
}

/// Rank 0 until all ranks have come.
class FirstRank {
 public:
  FirstRank(const Launch& l, const TcpLimits& limits)
      : launch_(l), limits_(limits), job_(job_hash(l)), listener_(l.listening_fd) {
    allow_connections(l.size);
    port_ = l.port;
    for (int p = l.port; p <= last_port(l) && !listener_; ++p) {
      listener_ = listen_on(p, false);
      port_ = p;
    }
    RWKV_CHECK(listener_, ConfigError, "waiting for ", l.size - 1, " ranks: none of the ports ",
               l.port, " to ", last_port(l), " is free here (MASTER_PORT)");
    members_.resize(static_cast<size_t>(l.size));
    hosts_.resize(static_cast<size_t>(l.size));
    hosts_[0] = host_name();
  }

  Meeting run() {
    const auto deadline = in_seconds(limits_.meeting);
    for (missing_ = launch_.size - 1; missing_ > 0;) {
      if (SocketClock::now() >= deadline) cancel(ConfigError("").exit_code(), missing_text());
      wait();
    }
    for (size_t r = 1; r < members_.size(); ++r)
      if (!send_frame(members_[r].fd(), FrameKind::kComplete, 0, "")) lost(static_cast<int>(r));
    return {std::move(members_), std::move(hosts_)};
  }

 private:
  /// A connection that has not said yet what it is.
  struct Guest {
    Socket socket;
    SocketClock::time_point deadline;
    Hello hello;
    size_t bytes = 0;  ///< received of it
  };

  /// Waits up to half a second and takes what has come.
  void wait() {
    std::vector<pollfd> fds = {{listener_.fd(), POLLIN, 0}};
    for (const Guest& g : guests_) fds.push_back({g.socket.fd(), POLLIN, 0});
    std::vector<int> ranks;
    for (size_t r = 1; r < members_.size(); ++r)
      if (members_[r]) {
        ranks.push_back(static_cast<int>(r));
        fds.push_back({members_[r].fd(), POLLIN | POLLRDHUP, 0});
      }
    if (::poll(fds.data(), fds.size(), 500) < 0) return;
    // Members have nothing to say before all are there.
    const size_t guests = guests_.size();
    for (size_t i = 0; i < ranks.size(); ++i)
      if (fds[1 + guests + i].revents != 0) lost(ranks[i]);
    for (size_t i = 0; i < guests; ++i) {
      Guest& g = guests_[i];
      const bool done = fds[1 + i].revents != 0 && listen_to(g);
      if (done || SocketClock::now() >= g.deadline) {
        if (!done) ++strangers_;
        g.socket.reset();
      }
    }
    std::erase_if(guests_, [](const Guest& g) { return !g.socket; });
    if (fds[0].revents != 0) take_guest();
  }

  void take_guest() {
    Socket s(::accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!s) {
      // Anything else is a connection that is gone already.
      if (errno == EMFILE || errno == ENFILE)
        cancel(kExitLost, str("starting ", launch_.size,
                              " ranks: too many open files for their connections (ulimit -n)"));
      return;
    }
    // Those who never say anything must not keep ranks out.
    const size_t most = 256 + members_.size();
    if (guests_.size() >= most) guests_.erase(guests_.begin());
    Guest g;
    g.socket = std::move(s);
    g.deadline = in_seconds(kHelloSeconds);
    guests_.push_back(std::move(g));
  }

  /// True when the connection is no guest any more.
  bool listen_to(Guest& g) {
    auto* at = reinterpret_cast<char*>(&g.hello) + g.bytes;
    const ssize_t n = ::recv(g.socket.fd(), at, sizeof g.hello - g.bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n > 0) g.bytes += static_cast<size_t>(n);
    const bool begun = g.bytes >= 2 * sizeof(uint32_t);
    if (n <= 0 ||
        std::memcmp(&g.hello.magic, &Frame::kMagic, std::min(g.bytes, sizeof Frame::kMagic)) != 0) {
      ++strangers_;
      return true;
    }
    if (begun && g.hello.protocol != kProtocol) {
      refuse(g, "of another version of this program");
      return true;
    }
    if (g.bytes < sizeof g.hello) return false;
    judge(g);
    return true;
  }

  /// A rank that belongs elsewhere.
  void refuse(Guest& g, const std::string& reason) {
    send_frame(g.socket.fd(), FrameKind::kOtherJob, 0, shown(launch_.job_name));
    if (refused_.empty()) refused_ = reason;
  }

  void judge(Guest& g) {
    const Hello& h = g.hello;
    const std::string host = text_of(h.host);
    if (text_of(h.job) != job_) {
      refuse(g, str("on ", host, " of ", shown(text_of(h.job_name))));
      return;
    }
    const auto contradict = [&](const std::string& text) {
      const int code = ConfigError("").exit_code();
      send_frame(g.socket.fd(), FrameKind::kRefused, code, text);
      cancel(code, str("starting ", launch_.size, " ranks: ", text));
    };
    if (h.size != launch_.size)
      contradict(str("rank ", h.rank, " on ", host, " was told that there are ", h.size,
                     " ranks (WORLD_SIZE), rank 0 on ", hosts_[0], " that there are ",
                     launch_.size));
    if (h.rank <= 0 || h.rank >= launch_.size)
      contradict(str("a process on ", host, " says that it is rank ", h.rank,
                     "; every process needs its own RANK, from 0 to ", launch_.size - 1));
    const auto r = static_cast<size_t>(h.rank);
    if (members_[r])
      contradict(str("a process on ", host, " says that it is rank ", h.rank, ", as one on ",
                     hosts_[r], " has; every process needs its own RANK, from 0 to ",
                     launch_.size - 1));
    watch_silence(g.socket.fd(), limits_.silence);
    hosts_[r] = host;
    members_[r] = std::move(g.socket);
    --missing_;
    if (!send_frame(members_[r].fd(), FrameKind::kNoted, 0, hosts_[0])) lost(h.rank);
  }

  std::string missing_text() const {
    std::vector<int> absent;
    for (int r = 1; r < launch_.size; ++r)
      if (!members_[static_cast<size_t>(r)]) absent.push_back(r);
    std::string text =
        str("starting ", launch_.size, " ranks: after ", limits_.meeting, " s ", absent.size(),
            absent.size() == 1 ? " has not come: rank " : " have not come: ranks ", ranges(absent),
            " (waiting on ", hosts_[0], ", port ", port_, ", of ", shown(launch_.job_name), ")");
    if (!refused_.empty()) text += str("; a rank ", refused_, " was refused", kSameJob);
    if (strangers_ > 0) text += str("; connections of no rank: ", strangers_);
    return text +
           "; do all have the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, and no firewall "
           "between them? RWKV_MEETING_SECONDS waits longer";
  }

  [[noreturn]] void lost(int rank) {
    cancel(kExitLost,
           str("starting ", launch_.size, " ranks: rank ", rank, " (",
               hosts_[static_cast<size_t>(rank)],
               ") ended before all had come: its connection is closed; see what it says itself"));
  }

  /// Ends the start on all ranks that are here.
  [[noreturn]] void cancel(int code, const std::string& text) {
    for (const Socket& s : members_)
      if (s) {
        limit_sending(s.fd(), 2);
        send_frame(s.fd(), FrameKind::kCancelled, code, text);
        ::shutdown(s.fd(), SHUT_WR);
      }
    if (code == ConfigError("").exit_code()) throw ConfigError(text);
    throw AgreedError(text, code);
  }

  const Launch& launch_;
  const TcpLimits& limits_;
  const std::string job_;
  Socket listener_;
  int port_ = 0, missing_ = 0, strangers_ = 0;
  std::string refused_;
  std::vector<Guest> guests_;
  std::vector<Socket> members_;
  std::vector<std::string> hosts_;
};

/// Another rank until rank 0 says that all have come.
class OtherRank {
 public:
  OtherRank(const Launch& l, const TcpLimits& limits) : launch_(l), limits_(limits) {
    hello_.rank = l.rank;
    hello_.size = l.size;
    set_text(hello_.job, job_hash(l));
    set_text(hello_.job_name, l.job_name);
    set_text(hello_.host, host_name());
  }

  Meeting run() {
    const auto deadline = in_seconds(limits_.meeting);
    do {
      for (int p = launch_.port; p <= last_port(launch_) && SocketClock::now() < deadline; ++p)
        if (Socket s = ask(p); s) return wait_for_all(std::move(s), p);
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    } while (SocketClock::now() < deadline);
    throw ConfigError(str("joining rank 0 at ", launch_.address, ":", launch_.port, " as rank ",
                          launch_.rank, " of ", launch_.size, ", ", shown(launch_.job_name),
                          ": not met in ", limits_.meeting, " s; ", findings(),
                          ". Is rank 0 running, and are MASTER_ADDR and MASTER_PORT its own? "
                          "RWKV_MEETING_SECONDS waits longer"));
  }

 private:
  /// The connection if rank 0 of this job is there.
  Socket ask(int port) {
    std::string& found = found_[static_cast<size_t>(port - launch_.port)];
    Socket s = connect_to(launch_.address, port, 2, &found);
    if (!s) return {};
    Frame f;
    if (!send_all(s.fd(), &hello_, sizeof hello_) ||
        !receive(s.fd(), &f, sizeof f, in_seconds(kHelloSeconds), &found))
      return {};
    std::string text;
    if (f.magic != Frame::kMagic || !read_text(s.fd(), f, &text)) {
      found = "something else listens";
      return {};
    }
    if (f.kind == FrameKind::kOtherJob) {
      found = str("rank 0 of ", text, kSameJob);
      return {};
    }
    RWKV_CHECK(f.kind != FrameKind::kRefused, ConfigError, "joining rank 0 at ", launch_.address,
               ":", port, ": ", text);
    if (f.kind == FrameKind::kCancelled) throw ReportedError(text, f.code);
    first_host_ = text;
    return s;
  }

  Meeting wait_for_all(Socket s, int port) const {
    watch_silence(s.fd(), limits_.silence);
    Frame f;
    std::string why, text;
    // Rank 0 may have begun to wait later than this rank did.
    const auto deadline = in_seconds(2 * limits_.meeting);
    const bool heard = receive(s.fd(), &f, sizeof f, deadline, &why) && f.magic == Frame::kMagic &&
                       read_text(s.fd(), f, &text);
    if (!heard)
      throw DeviceError(str("rank ", launch_.rank, ": rank 0 (", first_host_, ", port ", port,
                            ") ended before all ranks had come: ", why));
    if (f.kind != FrameKind::kComplete) throw ReportedError(text, f.code);
    Meeting m;
    m.peers.push_back(std::move(s));
    m.hosts.push_back(first_host_);
    return m;
  }

  static bool read_text(int fd, const Frame& f, std::string* text) {
    std::string why;
    text->resize(std::min(f.bytes, kLongestCause));
    return receive(fd, text->data(), text->size(), in_seconds(kHelloSeconds), &why);
  }

  /// What was found on the ports, equal findings together.
  std::string findings() const {
    std::string out;
    const auto count = static_cast<size_t>(last_port(launch_) - launch_.port + 1);
    for (size_t i = 0; i < count;) {
      size_t end = i + 1;
      while (end < count && found_[end] == found_[i]) ++end;
      const int first = launch_.port + static_cast<int>(i);
      out += str(out.empty() ? "port " : ", ", first);
      if (end - i > 1) out += str("-", launch_.port + static_cast<int>(end) - 1);
      out += str(": ", found_[i].empty() ? "not tried" : found_[i]);
      i = end;
    }
    return out;
  }

  const Launch& launch_;
  const TcpLimits& limits_;
  Hello hello_;
  std::array<std::string, kPorts> found_;
  std::string first_host_;
};

int seconds_from(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  RWKV_CHECK(*end == '\0' && value >= 0 && value <= 86400, ConfigError, "starting ranks: the ",
             "variable ", name, " is '", text, "', expected seconds from 0 to 86400");
  return static_cast<int>(value);
}

}  // namespace

TcpLimits TcpLimits::from_environment() {
  const TcpLimits usual;
  return {.meeting = seconds_from("RWKV_MEETING_SECONDS", usual.meeting),
          .silence = seconds_from("RWKV_SILENCE_SECONDS", usual.silence)};
}

Meeting meet_ranks(const Launch& launch, const TcpLimits& limits) {
  if (launch.rank == 0) return FirstRank(launch, limits).run();
  return OtherRank(launch, limits).run();
}

}  // namespace rwkv
