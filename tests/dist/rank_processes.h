#pragma once
/// Ranks of a group over TCP as real processes of this machine.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/program.h"
#include "trainer/comm/tcp_group.h"

namespace rwkv::test {

/// A process that runs `body` and ends with what it returns; its stderr goes to a pipe.
class Child {
 public:
  explicit Child(const std::function<int()>& body) {
    int ends[2];
    if (pipe(ends) != 0) throw std::runtime_error("pipe");
    pid_ = fork();
    if (pid_ == 0) {
      close(ends[0]);
      dup2(ends[1], 2);
      close(ends[1]);
      int code = 99;
      try {
        code = body();
      } catch (const Error& e) {
        std::fprintf(stderr, "threw: %s\n", e.what());
        code = 100 + e.exit_code();
      }
      std::fflush(stderr);
      _exit(code);
    }
    close(ends[1]);
    out_ = ends[0];
  }
  ~Child() {
    if (!waited_) wait();
    close(out_);
  }
  void kill(int signal) const { ::kill(pid_, signal); }
  /// Exit code, or -signal.
  int wait() {
    waited_ = true;
    char buffer[512];
    for (ssize_t n; (n = read(out_, buffer, sizeof buffer)) > 0;)
      text.append(buffer, static_cast<size_t>(n));
    return wait_for(pid_);
  }
  std::string text;

 private:
  pid_t pid_ = -1;
  int out_ = -1;
  bool waited_ = false;
};

class Tcp : public testing::Test {
 public:
  Tcp() : listener_(listen_locally(&port_)) {}
  ~Tcp() override { close(listener_); }

  Launch launch(int rank, int size) const {
    Launch l;
    l.kind = Launch::Kind::kTcp;
    l.rank = rank;
    l.size = size;
    l.address = "127.0.0.1";
    l.port = port_;
    if (rank == 0) l.listening_fd = dup(listener_);
    return l;
  }
  /// Starts a rank; `body` gets its group.
  std::unique_ptr<Child> start(int rank, int size, std::function<int(HostGroup&)> body,
                               TcpLimits limits = {.meeting = 20}) const {
    return start(launch(rank, size), std::move(body), limits);
  }
  static std::unique_ptr<Child> start(const Launch& launch, std::function<int(HostGroup&)> body,
                                      TcpLimits limits = {.meeting = 20}) {
    return std::make_unique<Child>([=] {
      const auto group = open_tcp_group(launch, limits);
      return body(*group);
    });
  }

  int port_ = 0, listener_;
};

/// Many exchanges of several sizes; 0 if all were right.
inline int exchange(HostGroup& g) {
  std::vector<int64_t> all(static_cast<size_t>(g.size()));
  for (int64_t round = 0; round < 50; ++round) {
    const int64_t mine = 100 * round + g.rank();
    g.all_gather(&mine, sizeof mine, all.data());
    for (size_t r = 0; r < all.size(); ++r)
      if (all[r] != 100 * round + static_cast<int64_t>(r)) return 1;
    const std::string text = g.broadcast(g.rank() == 0 ? std::string(100000, 'a') : "other");
    if (text != std::string(100000, 'a')) return 2;
    g.barrier();
  }
  return 0;
}

/// Waits for others that never call again.
inline int wait_forever(HostGroup& g) {
  g.barrier();
  if (g.rank() == 0) sleep(100);
  g.barrier();
  return 0;
}

}  // namespace rwkv::test
