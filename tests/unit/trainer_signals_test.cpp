// Signals that ask a run to stop: one request that comes twice is one, a later one ends it.

#include "trainer/signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

constexpr useconds_t kLonger = 2'100'000;  // than repeats count as one, in microseconds

/// For a process of its own: 0 if the run would still stop in good order.
int good_end(const StopSignals& stop, int signal) {
  return stop.received() == signal ? 0 : 1;
}

TEST(StopSignalsDeathTest, ARepeatIsTheSameRequest) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    const auto twice = [signal] {
      const StopSignals stop;
      raise(signal);
      raise(signal);
      usleep(50000);
      raise(signal);
      _exit(good_end(stop, signal));
    };
    EXPECT_EXIT(twice(), testing::ExitedWithCode(0), "") << signal;
  }
}

TEST(StopSignalsDeathTest, ALaterOneOrAnotherOneEndsAtOnce) {
  const auto later = [] {
    const StopSignals stop;
    raise(SIGTERM);
    usleep(kLonger);
    raise(SIGTERM);
    _exit(good_end(stop, SIGTERM));
  };
  EXPECT_EXIT(later(), testing::ExitedWithCode(128 + SIGTERM), "interrupted");
  const auto other = [] {
    const StopSignals stop;
    raise(SIGTERM);
    raise(SIGINT);
    _exit(good_end(stop, SIGTERM));
  };
  EXPECT_EXIT(other(), testing::ExitedWithCode(128 + SIGINT), "interrupted");
}

TEST(StopSignals, ANewOneStartsAfresh) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    const StopSignals stop;
    EXPECT_EQ(stop.received(), 0);
    raise(signal);
    EXPECT_EQ(stop.received(), signal);
    EXPECT_EQ(stop.name(), str("SIG", sigabbrev_np(signal)));
  }
}

TEST(StopSignalsDeathTest, OneThatIsHeldGoesToWhoeverAsksFirst) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    const auto stop_has_it = [signal] {
      hold_signals();
      raise(signal);
      raise(signal);
      const StopSignals stop;
      raise(signal);  // still the same request
      if (take_held_signal() != 0) _exit(2);
      _exit(good_end(stop, signal));
    };
    EXPECT_EXIT(stop_has_it(), testing::ExitedWithCode(0), "") << signal;
    const auto taken = [signal] {
      hold_signals();
      if (take_held_signal() != 0) _exit(2);
      raise(signal);
      if (take_held_signal() != signal) _exit(3);
      raise(signal);
      if (take_held_signal() != 0) _exit(4);
      const StopSignals stop;
      _exit(good_end(stop, 0));
    };
    EXPECT_EXIT(taken(), testing::ExitedWithCode(0), "") << signal;
  }
  const auto later = [] {
    hold_signals();
    raise(SIGTERM);
    usleep(kLonger);
    raise(SIGTERM);
    _exit(5);
  };
  EXPECT_EXIT(later(), testing::ExitedWithCode(128 + SIGTERM), "interrupted");
}

TEST(StopSignals, AHangupThatIsIgnoredStaysIgnored) {
  const auto before = ::signal(SIGHUP, SIG_IGN);
  {
    const StopSignals stop;
    raise(SIGHUP);
    EXPECT_EQ(stop.received(), 0);
  }
  EXPECT_EQ(::signal(SIGHUP, before), SIG_IGN);
}

}  // namespace
}  // namespace rwkv
