// A link between two GPUs breaks while both processes live: NCCL notices in the background, and the
// run ends with its message. The link is a TCP connection here, which a rank can break by itself.

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <set>

#include "kernels/core/arena.h"
#include "kernels/core/memory.h"
#include "kernels/core/stream_event.h"
#include "tests/dist/rank_processes.h"

namespace rwkv {
namespace {

/// Connected sockets of this process, by the numbers that the system gives them for good.
std::set<std::pair<int, ino_t>> connections() {
  std::set<std::pair<int, ino_t>> found;
  for (int fd = 0; fd < 4096; ++fd) {
    sockaddr_storage peer{};
    socklen_t length = sizeof peer;
    struct stat s {};
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) == 0 &&
        (peer.ss_family == AF_INET || peer.ss_family == AF_INET6) && fstat(fd, &s) == 0)
      found.insert({fd, s.st_ino});
  }
  return found;
}

/// 7 after 90 s without an end, 8 if an exchange returned other sums than those of both ranks.
int exchange_until_the_link_breaks(RankSession& session) {
  const auto before = connections();
  Communicator* comm = session.connect(Device::kCuda);
  Context ctx(Device::kCuda);
  const TensorSpec spec({1 << 20});
  Arena memory(Device::kCuda, spec.bytes(), "exchanged");
  std::vector<float> ones(1 << 20, 1.0f), sums(ones.size());
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(90);
  for (int i = 0; std::chrono::steady_clock::now() < end; ++i) {
    copy(ctx, memory.at(0, spec), TensorView(ones.data(), spec));
    ctx.synchronize("ones");
    comm->all_reduce(memory.at(0, spec).f32(), 1 << 20);
    if (i == 20 && session.rank() == 1) {
      int broken = 0;
      for (const auto& c : connections())
        if (!before.contains(c)) broken += shutdown(c.first, SHUT_RDWR) == 0 ? 1 : 0;
      std::fprintf(stderr, "broke %d connections\n", broken);
    }
    StreamEvent done;
    done.record_on(comm->stream());
    done.wait(ctx);
    copy(ctx, TensorView(sums.data(), spec), memory.at(0, spec));
    if (std::ranges::count(sums, 2.0f) != 1 << 20) {
      std::fprintf(stderr, "wrong sums\n");
      return 8;
    }
  }
  return 7;
}

TEST(LinkFault, EndsBothRanksWithNcclsMessage) {
  test::Child child([] {
    // Two GPUs of one machine as if they were of two.
    for (const char* name : {"NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE"})
      setenv(name, "1", 1);
    setenv("NCCL_NET", "Socket", 1);
    setenv("NCCL_SOCKET_IFNAME", "lo", 1);
    return run_ranks(2, "ranks", exchange_until_the_link_breaks);
  });
  const auto begin = std::chrono::steady_clock::now();
  const int code = child.wait();
  if (child.text.find("one rank per GPU") != std::string::npos ||
      child.text.find("looking for GPUs") != std::string::npos)
    GTEST_SKIP() << "needs two GPUs";
  std::printf("%s", child.text.c_str());
  EXPECT_EQ(code, kExitLostRank);
  EXPECT_NE(child.text.find("NCCL"), std::string::npos) << child.text;
  EXPECT_NE(child.text.find("--resume continues from the last checkpoint"), std::string::npos)
      << child.text;
  EXPECT_EQ(child.text.find("wrong sums"), std::string::npos) << child.text;
  EXPECT_EQ(child.text.find("is gone"), std::string::npos) << "nobody died\n" << child.text;
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

}  // namespace
}  // namespace rwkv
