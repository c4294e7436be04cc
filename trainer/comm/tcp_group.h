#pragma once
/// A HostGroup over TCP for launches without MPI: every rank holds one connection to rank 0.
///
/// A thread reads the connections, also while the main thread computes or waits for a collective
/// that can never finish. It ends the process, with one message of rank 0 that names the rank, when
/// - a connection is closed: the process behind it is gone (at once);
/// - a machine or the network does not answer, or a process shows no life: ranks send a sign of
///   life every few seconds (TcpLimits::silence, 30 s; time in which this process itself was
///   stopped does not count).
/// A signal that is held (trainer/signals.h) ends all ranks with 128 + signal.

#include <memory>

#include "trainer/comm/meeting.h"

namespace rwkv {

inline constexpr int kExitLostRank = 4;  ///< exit code when another rank is gone

/// Meets the other ranks (meet_ranks) and connects them.
std::unique_ptr<HostGroup> open_tcp_group(const Launch& launch, const TcpLimits& limits);

/// A socket that listens on this machine only, and its port.
int listen_locally(int* port);

}  // namespace rwkv
