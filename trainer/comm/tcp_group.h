#pragma once
/// A HostGroup over TCP for launches without MPI: every rank holds one connection to rank 0.
///
/// A thread watches the connections. When a rank dies its machine closes them, and when a machine
/// or the network dies the system's keep-alive probes notice within kSilenceSeconds; the process is
/// then ended with a message that names the rank, also while its main thread waits for a collective
/// that can never finish.

#include <memory>

#include "trainer/comm/launch.h"

namespace rwkv {

inline constexpr int kSilenceSeconds = 30;  ///< without an answer a machine counts as gone
inline constexpr int kExitLostRank = 4;     ///< exit code when another rank is gone

/// Meets the other ranks at launch.address : launch.port, or at one of the next ports where that
/// one is taken (torchrun's own store uses the first). Throws ConfigError if not all have come
/// within `patience_seconds`, or if they do not agree on their number.
std::unique_ptr<HostGroup> open_tcp_group(const Launch& launch, int patience_seconds = 120);

/// A socket that listens on this machine only, and its port.
int listen_locally(int* port);

}  // namespace rwkv
