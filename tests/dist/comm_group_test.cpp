// How ranks find each other without MPI, and what happens when one of them goes: real processes on
// this machine. Also which variables say that a process is a rank.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <thread>

#include "trainer/comm/launch.h"
#include "trainer/comm/mpi_comm.h"
#include "trainer/comm/tcp_group.h"

namespace rwkv {
namespace {

using Variables = std::map<std::string, std::string>;

Launch detect(const Variables& v) {
  return detect_launch([&](const char* name) {
    const auto found = v.find(name);
    return found == v.end() ? std::string() : found->second;
  });
}

TEST(DetectLaunch, KnowsLaunchersByTheirVariables) {
  EXPECT_EQ(detect({}).kind, Launch::Kind::kSingle);
  EXPECT_EQ(detect({{"OMPI_COMM_WORLD_SIZE", "1"}}).kind, Launch::Kind::kSingle);
  EXPECT_EQ(detect({{"OMPI_COMM_WORLD_SIZE", "4"}}).kind, Launch::Kind::kMpi);
  EXPECT_EQ(detect({{"PMIX_RANK", "0"}, {"SLURM_NTASKS", "2"}}).kind, Launch::Kind::kMpi);
  EXPECT_EQ(detect({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).kind, Launch::Kind::kSingle);

  Variables torch = {{"RANK", "3"},
                     {"WORLD_SIZE", "8"},
                     {"LOCAL_RANK", "1"},
                     {"MASTER_ADDR", "node0"},
                     {"MASTER_PORT", "29500"}};
  Launch l = detect(torch);
  EXPECT_EQ(l.kind, Launch::Kind::kTcp);
  EXPECT_EQ(l.rank, 3);
  EXPECT_EQ(l.size, 8);
  EXPECT_EQ(l.local_rank, 1);
  EXPECT_EQ(l.address, "node0");
  EXPECT_EQ(l.port, 29500);
  torch["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  EXPECT_EQ(detect(torch).port, 29501) << "torchrun listens on the first";

  l = detect(
      {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}, {"NCCL_COMM_ID", "[fe80::1]:777"}});
  EXPECT_EQ(l.address, "fe80::1");
  EXPECT_EQ(l.port, 777);
  l = detect({{"SLURM_PROCID", "5"},
              {"SLURM_NTASKS", "6"},
              {"SLURM_LOCALID", "2"},
              {"MASTER_ADDR", "a"},
              {"MASTER_PORT", "1"}});
  EXPECT_EQ(l.rank, 5);
  EXPECT_EQ(l.local_rank, 2);
  EXPECT_EQ(detect({{"SLURM_PROCID", "5"}, {"SLURM_NTASKS", "6"}}).kind, Launch::Kind::kSingle)
      << "a shell in an allocation";
}

TEST(DetectLaunch, ExplicitRanksComeBeforeMpiAndMpiBeforeSlurm) {
  Variables v = {{"PMIX_RANK", "0"},       {"OMPI_COMM_WORLD_SIZE", "2"}, {"RANK", "3"},
                 {"WORLD_SIZE", "8"},      {"LOCAL_RANK", "1"},           {"MASTER_ADDR", "a"},
                 {"MASTER_PORT", "29500"}, {"SLURM_PROCID", "1"},         {"SLURM_NTASKS", "2"},
                 {"SLURM_LOCALID", "0"}};
  EXPECT_EQ(detect(v).kind, Launch::Kind::kTcp);
  EXPECT_EQ(detect(v).rank, 3);
  v["RANK"] = "0";
  v["WORLD_SIZE"] = "1";  // what mpirun starts inside such a process are ranks
  v.erase("SLURM_PROCID");
  EXPECT_EQ(detect(v).kind, Launch::Kind::kMpi);
  v.erase("RANK");
  v.erase("WORLD_SIZE");
  v["SLURM_PROCID"] = "1";
  const Launch l = detect(v);
  EXPECT_EQ(l.kind, has_mpi() ? Launch::Kind::kMpi : Launch::Kind::kTcp);
  if (!has_mpi()) {
    EXPECT_EQ(l.rank, 1);
    EXPECT_EQ(l.size, 2);
  }
  v.erase("MASTER_ADDR");
  EXPECT_EQ(detect(v).kind, Launch::Kind::kMpi);
}

TEST(DetectLaunch, RefusesWhatIsIncomplete) {
  const Variables good = {{"RANK", "1"},
                          {"WORLD_SIZE", "2"},
                          {"LOCAL_RANK", "1"},
                          {"MASTER_ADDR", "a"},
                          {"MASTER_PORT", "5"}};
  for (const auto& [name, value] : good) {
    Variables v = good;
    v.erase(name);
    EXPECT_THROW(detect(v), ConfigError) << "without " << name;
    if (name == "MASTER_ADDR") continue;
    v[name] = "x";
    EXPECT_THROW(detect(v), ConfigError) << name;
    v[name] = "70000";
    EXPECT_THROW(detect(v), ConfigError) << name;
  }
}

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
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  std::string text;

 private:
  pid_t pid_ = -1;
  int out_ = -1;
  bool waited_ = false;
};

class Tcp : public testing::Test {
 protected:
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
                               int patience = 20) const {
    return std::make_unique<Child>([=, this] {
      const auto group = open_tcp_group(launch(rank, size), patience);
      return body(*group);
    });
  }

  int port_ = 0, listener_;
};

int exchange(HostGroup& g) {
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

TEST_F(Tcp, Exchanges) {
  std::vector<std::unique_ptr<Child>> ranks;
  for (const int r : {2, 1, 0, 3}) ranks.push_back(start(r, 4, exchange));
  for (auto& r : ranks) EXPECT_EQ(r->wait(), 0) << r->text;
}

/// Waits for others that never call again.
int wait_forever(HostGroup& g) {
  g.barrier();
  if (g.rank() == 0) sleep(100);
  g.barrier();
  return 0;
}

TEST_F(Tcp, TheDeathOfARankEndsAllAndIsNamed) {
  auto first = start(0, 3, wait_forever), last = start(2, 3, wait_forever);
  auto victim = start(1, 3, [](HostGroup& g) {
    g.barrier();
    raise(SIGKILL);
    return 0;
  });
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(victim->wait(), -SIGKILL);
  EXPECT_EQ(first->wait(), kExitLostRank);
  EXPECT_NE(first->text.find("rank 1 ("), std::string::npos) << first->text;
  EXPECT_NE(first->text.find("is gone"), std::string::npos) << first->text;
  EXPECT_EQ(last->wait(), kExitLostRank);
  EXPECT_EQ(last->text, "") << "rank 0 has said it";
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST_F(Tcp, TheDeathOfRankZeroEndsAllAndIsNamed) {
  auto other = start(1, 2, wait_forever);
  auto first = start(0, 2, [](HostGroup& g) {
    g.barrier();
    raise(SIGKILL);
    return 0;
  });
  EXPECT_EQ(first->wait(), -SIGKILL);
  EXPECT_EQ(other->wait(), kExitLostRank);
  EXPECT_NE(other->text.find("rank 0 ("), std::string::npos) << other->text;
}

TEST_F(Tcp, AFailingRankGivesItsReason) {
  auto first = start(0, 3, wait_forever), last = start(2, 3, wait_forever);
  auto failing = start(1, 3, [](HostGroup& g) -> int {
    g.barrier();
    g.abort("the disk is on fire", 3);
    return 0;
  });
  EXPECT_EQ(failing->wait(), 3);
  EXPECT_EQ(first->wait(), 3);
  EXPECT_EQ(last->wait(), 3);
  EXPECT_NE(first->text.find("rank 1 ("), std::string::npos) << first->text;
  EXPECT_NE(first->text.find("the disk is on fire"), std::string::npos) << first->text;
  EXPECT_EQ(failing->text + last->text, "") << "one message";
}

TEST_F(Tcp, AnErrorWithinSharedWorkEndsAllBeforeAnythingIsTornDown) {
  struct TellsItsEnd {
    ~TellsItsEnd() { std::fprintf(stderr, "torn down\n"); }
  };
  const auto failing = [](auto error) {
    return [error](HostGroup& g) -> int {
      g.barrier();
      const TellsItsEnd end;
      abort_on_error(&g, [&] { throw error; });
      return 0;
    };
  };
  const auto check = [&](const auto& body, int code, const char* says) {
    auto first = start(0, 2, wait_forever);
    auto other = start(1, 2, body);
    EXPECT_EQ(other->wait(), code);
    EXPECT_EQ(other->text, "");
    EXPECT_EQ(first->wait(), code);
    EXPECT_NE(first->text.find(says), std::string::npos) << first->text;
  };
  check(failing(IoError("no such disk")), 3, "no such disk");
  check(failing(std::bad_alloc()), 4, "out of memory");
  check(failing(std::runtime_error("a surprise")), 1, "a surprise");
  // What all ranks throw together goes up.
  auto agreed = start(0, 2, [](HostGroup& g) {
    int code = 0;
    try {
      abort_on_error(&g, [] { throw AgreedError("", 2); });
    } catch (const AgreedError& e) {
      code = e.exit_code();
    }
    g.barrier();
    return code;
  });
  auto reported = start(1, 2, [](HostGroup& g) {
    g.barrier();
    return 0;
  });
  EXPECT_EQ(agreed->wait(), 2) << agreed->text;
  EXPECT_EQ(reported->wait(), 0) << reported->text;
}

TEST_F(Tcp, MissingRanksAndWrongNumbersAreNamed) {
  auto lonely = start(0, 3, exchange, 1);
  EXPECT_EQ(lonely->wait(), 102);
  EXPECT_NE(lonely->text.find("have not come: 1, 2"), std::string::npos) << lonely->text;
  auto first = start(0, 2, exchange, 10);
  auto other = start(1, 3, exchange, 10);
  EXPECT_EQ(first->wait(), 102);
  EXPECT_NE(first->text.find("WORLD_SIZE"), std::string::npos) << first->text;
  EXPECT_EQ(other->wait(), 102);
}

TEST(LocalRanks, CountsDeathsAndExitCodes) {
  const auto run = [](const std::function<int(const Launch&)>& body) {
    Child child([&] {
      int code = 0;
      const Launch l = fork_local_ranks(3, "program", &code);
      if (l.rank < 0) return code;
      return body(l);
    });
    const int code = child.wait();
    return std::make_pair(code, child.text);
  };
  const auto group_of = [](const Launch& l) { return open_tcp_group(l, 10); };
  auto good = run([&](const Launch& l) { return exchange(*group_of(l)); });
  EXPECT_EQ(good.first, 0) << good.second;
  auto killed = run([&](const Launch& l) {
    const auto group = group_of(l);
    group->barrier();
    if (l.rank == 2) raise(SIGKILL);
    return wait_forever(*group);
  });
  EXPECT_EQ(killed.first, kExitLostRank);
  EXPECT_NE(killed.second.find("rank 2 (process "), std::string::npos) << killed.second;
  EXPECT_NE(killed.second.find("signal 9"), std::string::npos) << killed.second;
}

TEST(LocalRanks, SignalsReachAllRanks) {
  Child child([] {
    int code = 0;
    const Launch l = fork_local_ranks(2, "program", &code);
    if (l.rank < 0) return code;
    signal(SIGTERM, [](int) { _exit(7); });
    if (l.rank == 1) std::fprintf(stderr, "ready\n");
    sleep(100);
    return 0;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  child.kill(SIGTERM);
  EXPECT_EQ(child.wait(), 7);
}

}  // namespace
}  // namespace rwkv
