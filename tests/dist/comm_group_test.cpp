// How ranks find each other without MPI, and what happens when one of them goes: real processes on
// this machine. Also which variables say that a process is a rank.

#include <map>

#include "tests/dist/rank_processes.h"
#include "trainer/comm/mpi_comm.h"

namespace rwkv {
namespace {

using test::Child;
using test::exchange;
using test::Tcp;
using test::wait_forever;

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
  EXPECT_EQ(detect({{"PMIX_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}}).kind, Launch::Kind::kSingle)
      << "mpirun -n 1";
  EXPECT_EQ(detect({{"PMIX_RANK", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}}).kind,
            Launch::Kind::kSingle);
  EXPECT_EQ(
      detect({{"PMIX_RANK", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_HET_SIZE", "2"}}).kind,
      Launch::Kind::kMpi);
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

TEST(DetectLaunch, KnowsTheJob) {
  Variables v = {{"RANK", "1"},
                 {"WORLD_SIZE", "2"},
                 {"LOCAL_RANK", "1"},
                 {"MASTER_ADDR", "a"},
                 {"MASTER_PORT", "5"}};
  const std::string plain = detect(v).job;
  v["MASTER_PORT"] = "6";
  EXPECT_NE(detect(v).job, plain);
  v["TORCHELASTIC_RUN_ID"] = "run";
  const std::string torch = detect(v).job;
  EXPECT_NE(torch.find("TORCHELASTIC_RUN_ID=run"), std::string::npos) << torch;
  v["SLURM_JOB_ID"] = "77";
  v["SLURM_STEP_ID"] = "1";
  EXPECT_EQ(detect(v).job_name, "SLURM_JOB_ID=77, port 6");
  v["RWKV_JOB_TOKEN"] = "secret";
  const Launch l = detect(v);
  v["SLURM_JOB_ID"] = "78";
  EXPECT_EQ(detect(v).job, l.job) << "the token alone counts";
  EXPECT_EQ(l.job_name.find("secret"), std::string::npos) << "messages show the name";
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

TEST_F(Tcp, Exchanges) {
  std::vector<std::unique_ptr<Child>> ranks;
  for (const int r : {2, 1, 0, 3}) ranks.push_back(start(r, 4, exchange));
  for (auto& r : ranks) EXPECT_EQ(r->wait(), 0) << r->text;
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

TEST_F(Tcp, ARankThatShowsNoLifeEndsAllAndIsNamed) {
  const TcpLimits limits = {.meeting = 20, .silence = 2};
  auto first = start(0, 3, wait_forever, limits), last = start(2, 3, wait_forever, limits);
  auto victim = start(
      1, 3,
      [](HostGroup& g) {
        g.barrier();
        raise(SIGSTOP);
        return 0;
      },
      limits);
  EXPECT_EQ(first->wait(), kExitLostRank);
  EXPECT_NE(first->text.find("rank 1 ("), std::string::npos) << first->text;
  EXPECT_NE(first->text.find("no sign of life for 2 s"), std::string::npos) << first->text;
  EXPECT_EQ(last->wait(), kExitLostRank);
  EXPECT_EQ(last->text, "");
  victim->kill(SIGKILL);
}

TEST_F(Tcp, AJobThatIsStoppedAsAWholeGoesOn) {
  const auto pause_between = [](HostGroup& g) {
    g.barrier();
    sleep(2);
    return exchange(g);
  };
  const TcpLimits limits = {.meeting = 20, .silence = 2};
  std::vector<std::unique_ptr<Child>> ranks;
  for (const int r : {0, 1, 2}) ranks.push_back(start(r, 3, pause_between, limits));
  std::this_thread::sleep_for(std::chrono::seconds(1));
  for (const auto& r : ranks) r->kill(SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(4));
  for (const auto& r : ranks) r->kill(SIGCONT);
  for (const auto& r : ranks) EXPECT_EQ(r->wait(), 0) << r->text;
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
  const auto group_of = [](const Launch& l) { return open_tcp_group(l, {.meeting = 10}); };
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

TEST(LocalRanks, AParentThatIgnoresTheEndOfItsChildrenChangesNothing) {
  Child child([] {
    signal(SIGCHLD, SIG_IGN);  // as programs started by it inherit it
    alarm(20);                 // ends this process, which would wait for ever
    int code = 0;
    const Launch l = fork_local_ranks(2, "program", &code);
    return l.rank < 0 ? code : 5;
  });
  EXPECT_EQ(child.wait(), 5);
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

TEST(LocalRanks, ASignalToOneOfThemEndsAllWithOneWord) {
  for (const int victim : {0, 1, 2}) {
    Child child([&] {
      return run_ranks(3, "program", [&](RankSession& s) {
        s.group()->barrier();
        if (s.rank() == victim) raise(SIGINT);
        return wait_forever(*s.group());
      });
    });
    EXPECT_EQ(child.wait(), 128 + SIGINT) << child.text;
    EXPECT_EQ(child.text, "program: interrupted\n") << "of rank " << victim;
  }
}

}  // namespace
}  // namespace rwkv
