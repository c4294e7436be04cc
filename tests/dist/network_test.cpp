// Two machines and a cable between them: network namespaces of this machine, so that ranks meet
// over addresses of their own and the cable can be pulled. Skipped where that is not allowed.

#include <fcntl.h>
#include <sched.h>

#include <cstdlib>

#include "tests/dist/rank_processes.h"

namespace rwkv {
namespace {

using std::chrono::steady_clock;
using test::Child;

class Network : public testing::Test {
 protected:
  void SetUp() override {
    if (!ip("netns add " + space(0)) || !ip("netns add " + space(1)) ||
        !ip("link add cable netns " + space(0) + " type veth peer name cable netns " + space(1)))
      GTEST_SKIP() << "no network namespaces here";
    for (const int machine : {0, 1}) {
      const std::string in = "-n " + space(machine);
      ASSERT_TRUE(ip(str(in, " addr add ", address(machine), "/24 dev cable")));
      ASSERT_TRUE(ip(in + " link set lo up") && ip(in + " link set cable up"));
    }
  }
  void TearDown() override {
    for (const int machine : {0, 1}) ip("netns del " + space(machine));
  }

  static bool ip(const std::string& words) {
    return std::system(("ip " + words + " >/dev/null 2>&1").c_str()) == 0;
  }
  static std::string space(int machine) { return str("greylag", getpid(), machine); }
  static std::string address(int machine) { return str("10.77.0.", machine + 1); }
  static void pull_the_cable() { EXPECT_TRUE(ip("-n " + space(0) + " link set cable down")); }

  /// Rank 0 on machine 0, the others on machine 1.
  static std::unique_ptr<Child> start(int rank, int size, std::function<int(HostGroup&)> body,
                                      TcpLimits limits) {
    const std::string machine = "/var/run/netns/" + space(rank == 0 ? 0 : 1);
    return std::make_unique<Child>([=] {
      const int fd = open(machine.c_str(), O_RDONLY);
      if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) return 98;
      Launch l;
      l.kind = Launch::Kind::kTcp;
      l.rank = rank;
      l.size = size;
      l.address = address(0);
      l.port = 29500;
      return body(*open_tcp_group(l, limits));
    });
  }
};

TEST_F(Network, RanksOfTwoMachinesMeetAndExchange) {
  std::vector<std::unique_ptr<Child>> ranks;
  for (const int r : {1, 2, 0}) ranks.push_back(start(r, 3, test::exchange, {.meeting = 20}));
  for (auto& r : ranks) EXPECT_EQ(r->wait(), 0) << r->text;
}

TEST_F(Network, APulledCableEndsBothSidesAndIsNamed) {
  constexpr TcpLimits kLimits = {.meeting = 20, .silence = 3};
  auto first = start(0, 3, test::wait_forever, kLimits);
  auto one = start(1, 3, test::wait_forever, kLimits);
  auto two = start(2, 3, test::wait_forever, kLimits);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  pull_the_cable();
  const auto begin = steady_clock::now();
  for (auto* rank : {first.get(), one.get(), two.get()})
    EXPECT_EQ(rank->wait(), kExitLostRank) << rank->text;
  EXPECT_NE(first->text.find("is gone: no sign of life for 3 s"), std::string::npos) << first->text;
  for (auto* other : {one.get(), two.get()})
    EXPECT_NE(other->text.find("rank 0 ("), std::string::npos) << other->text;
  EXPECT_LT(steady_clock::now() - begin, std::chrono::seconds(15));
}

TEST_F(Network, ADeafMachineIsReported) {
  pull_the_cable();
  auto first = start(0, 2, test::exchange, {.meeting = 2});
  auto other = start(1, 2, test::exchange, {.meeting = 3});
  EXPECT_EQ(first->wait(), 102);
  EXPECT_NE(first->text.find("1 has not come: rank 1"), std::string::npos) << first->text;
  EXPECT_EQ(other->wait(), 102);
  EXPECT_NE(other->text.find("not met in 3 s; port 29500"), std::string::npos) << other->text;
}

}  // namespace
}  // namespace rwkv
