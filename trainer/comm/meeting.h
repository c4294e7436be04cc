#pragma once
/// How the ranks of a launch without MPI find each other: all connect to rank 0.
///
/// Rank 0 listens at launch.address : launch.port, or at one of the next ports where that one is
/// taken (torchrun's own store uses the first). Whoever connects says which job and rank it is.
/// - What does not speak this protocol is dropped, ranks of other jobs are sent on to the next
///   port: neither ends the start.
/// - Ranks of this job that contradict each other (number of ranks, a rank twice) end it, and so
///   does a rank whose connection ends before all are there.
/// - Every rank waits for the last one: nobody starts alone.

#include <string>
#include <vector>

#include "trainer/comm/launch.h"
#include "trainer/comm/sockets.h"

namespace rwkv {

/// Seconds; `from_environment` takes RWKV_MEETING_SECONDS and RWKV_SILENCE_SECONDS. Throws
/// ConfigError for values that are no numbers.
struct TcpLimits {
  int meeting = 120;  ///< until all ranks have come
  int silence = 30;   ///< without a sign of life a rank or machine counts as gone; 0: never
  static TcpLimits from_environment();
};

/// The connections of a rank.
struct Meeting {
  std::vector<Socket> peers;       ///< rank 0: by rank, its own is not open; others: rank 0's
  std::vector<std::string> hosts;  ///< beside them: names of machines
};

/// Throws ConfigError on rank 0 if not all have come in time, naming those that have not, and on a
/// rank that reaches nobody or contradicts the others; AgreedError on rank 0 if a rank ended.
/// Ranks that could do nothing about it throw ReportedError.
Meeting meet_ranks(const Launch& launch, const TcpLimits& limits);

}  // namespace rwkv
