// How ranks find each other without MPI: who is let in, what is said about those who are not, and
// how long anybody waits.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdlib>

#include "tests/dist/rank_processes.h"

namespace rwkv {
namespace {

using test::Child;
using test::exchange;
using Meet = test::Tcp;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

constexpr int kThrewConfigError = 102, kThrewLost = 104;

TEST_F(Meet, TheAbsentAreNamedAfterTheTimeThatWasGiven) {
  const auto begin = std::chrono::steady_clock::now();
  auto first = start(0, 6, exchange, {.meeting = 2}), second = start(2, 6, exchange);
  EXPECT_EQ(first->wait(), kThrewConfigError);
  EXPECT_TRUE(has(first->text, "after 2 s 4 have not come: ranks 1, 3-5")) << first->text;
  EXPECT_TRUE(has(first->text, str("port ", port_))) << first->text;
  EXPECT_TRUE(has(first->text, "RWKV_MEETING_SECONDS")) << first->text;
  EXPECT_EQ(second->wait(), kThrewConfigError) << "it was told";
  EXPECT_TRUE(has(second->text, "have not come: ranks 1, 3-5")) << second->text;
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST_F(Meet, ARankThatReachesNobodySaysWhatItFound) {
  Launch l = launch(1, 2);
  l.port = 1;  // nobody listens there
  l.job_name = "SLURM_JOB_ID=5";
  auto lonely = start(l, exchange, {.meeting = 1});
  EXPECT_EQ(lonely->wait(), kThrewConfigError);
  for (const char* part : {"127.0.0.1:1 as rank 1 of 2", "job SLURM_JOB_ID=5", "not met in 1 s",
                           "port 1-8: connection refused", "MASTER_ADDR"})
    EXPECT_TRUE(has(lonely->text, part)) << part << "\n" << lonely->text;
}

TEST_F(Meet, DifferentNumbersOfRanksAndARankTwiceEndTheStart) {
  auto first = start(0, 2, exchange), other = start(1, 3, exchange);
  EXPECT_EQ(first->wait(), kThrewConfigError);
  EXPECT_TRUE(has(first->text, "there are 3 ranks (WORLD_SIZE)")) << first->text;
  EXPECT_TRUE(has(first->text, "that there are 2")) << first->text;
  EXPECT_EQ(other->wait(), kThrewConfigError);
  EXPECT_TRUE(has(other->text, "WORLD_SIZE")) << other->text;
}

TEST_F(Meet, ARankTwiceEndsTheStart) {
  auto first = start(0, 4, exchange), one = start(1, 4, exchange);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  auto again = start(1, 4, exchange);
  for (auto* rank : {first.get(), one.get(), again.get()}) {
    EXPECT_EQ(rank->wait(), kThrewConfigError);
    EXPECT_TRUE(has(rank->text, "says that it is rank 1, as one on ")) << rank->text;
  }
}

TEST_F(Meet, ARankThatDiesBeforeAllHaveComeIsNamed) {
  const auto begin = std::chrono::steady_clock::now();
  auto first = start(0, 4, exchange), one = start(1, 4, exchange), two = start(2, 4, exchange);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  two->kill(SIGKILL);
  EXPECT_EQ(first->wait(), kThrewLost);
  EXPECT_TRUE(has(first->text, "rank 2 (")) << first->text;
  EXPECT_TRUE(has(first->text, "ended before all had come")) << first->text;
  EXPECT_EQ(one->wait(), kThrewLost) << one->text;
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST_F(Meet, TheDeathOfRankZeroBeforeAllHaveComeIsToldByTheOthers) {
  auto first = start(0, 3, exchange), one = start(1, 3, exchange);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  first->kill(SIGKILL);
  EXPECT_EQ(one->wait(), kThrewLost);
  EXPECT_TRUE(has(one->text, "rank 1: rank 0 (")) << one->text;
  EXPECT_TRUE(has(one->text, "ended before all ranks had come")) << one->text;
}

/// A connection of something else to the meeting point.
Socket stranger(int port, const std::string& words) {
  std::string why;
  Socket s = connect_to("127.0.0.1", port, 5, &why);
  EXPECT_TRUE(s) << why;
  EXPECT_TRUE(send_all(s.fd(), words.data(), words.size()));
  return s;
}

TEST_F(Meet, StrangersNeitherEndNorDelayTheStart) {
  const auto begin = std::chrono::steady_clock::now();
  auto first = start(0, 3, exchange);
  std::vector<Socket> open;
  open.push_back(stranger(port_, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
  for (int i = 0; i < 20; ++i) open.push_back(stranger(port_, ""));  // say nothing, stay
  open.push_back(stranger(port_, "l"));                              // begins like a rank
  open.push_back(stranger(port_, std::string(300, '\0')));
  for (int i = 0; i < 20; ++i) stranger(port_, "lyrg");  // begin, and go
  auto one = start(1, 3, exchange), two = start(2, 3, exchange);
  for (auto* rank : {first.get(), one.get(), two.get()}) EXPECT_EQ(rank->wait(), 0) << rank->text;
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(4));
}

TEST_F(Meet, StrangersAreCountedWhenRanksAreMissing) {
  auto first = start(0, 2, exchange, {.meeting = 1});
  stranger(port_, "GET / HTTP/1.1\r\n\r\n");
  EXPECT_EQ(first->wait(), kThrewConfigError);
  EXPECT_TRUE(has(first->text, "connections of no rank: 1")) << first->text;
}

TEST_F(Meet, RanksOfAnotherJobAreRefusedAndBothStart) {
  // The second job finds the first port taken and listens on the next one that is free.
  const int base = port_;
  Launch a = launch(0, 2), b = launch(0, 2);
  a.job = "a", a.job_name = "SLURM_JOB_ID=1";
  b.job = "b", b.job_name = "SLURM_JOB_ID=2";
  close(std::exchange(b.listening_fd, -1));
  auto first_a = start(a, exchange), first_b = start(b, exchange);
  a.rank = b.rank = 1;
  b.port = base;
  auto other_b = start(b, exchange);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  auto other_a = start(a, exchange);
  for (auto* rank : {first_a.get(), first_b.get(), other_a.get(), other_b.get()})
    EXPECT_EQ(rank->wait(), 0) << rank->text;
}

TEST_F(Meet, ARankOfAnotherJobAloneIsToldWhomItMet) {
  Launch a = launch(0, 2), b = launch(1, 2);
  a.job = "a", a.job_name = "SLURM_JOB_ID=1";
  b.job = "b", b.job_name = "SLURM_JOB_ID=2";
  auto first = start(a, exchange, {.meeting = 2}), other = start(b, exchange, {.meeting = 1});
  EXPECT_EQ(other->wait(), kThrewConfigError);
  EXPECT_TRUE(has(other->text, "rank 0 of job SLURM_JOB_ID=1 (if that is this job, set "))
      << other->text;
  EXPECT_EQ(first->wait(), kThrewConfigError);
  EXPECT_TRUE(has(first->text, "of job SLURM_JOB_ID=2 was refused")) << first->text;
  EXPECT_TRUE(has(first->text, "1 has not come: rank 1 ")) << first->text;
}

TEST_F(Meet, TimesComeFromTheEnvironment) {
  setenv("RWKV_MEETING_SECONDS", "7", 1);
  setenv("RWKV_SILENCE_SECONDS", "0", 1);
  TcpLimits limits = TcpLimits::from_environment();
  EXPECT_EQ(limits.meeting, 7);
  EXPECT_EQ(limits.silence, 0);
  setenv("RWKV_MEETING_SECONDS", "soon", 1);
  EXPECT_THROW(TcpLimits::from_environment(), ConfigError);
  unsetenv("RWKV_MEETING_SECONDS");
  unsetenv("RWKV_SILENCE_SECONDS");
  limits = TcpLimits::from_environment();
  EXPECT_EQ(limits.meeting, 120);
  EXPECT_EQ(limits.silence, 30);
}

}  // namespace
}  // namespace rwkv
