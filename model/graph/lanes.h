#pragma once
/// Which steps of a plan may run at the same time, and on which lane.
///
/// A lane is a stream with its own workspace. Steps conflict when they touch the same memory and
/// one of them writes; of two conflicting steps the later one waits for the earlier. Small models
/// and batches leave most of a GPU idle when their kernels run one after another: gradients of
/// weights and the four low-rank branches of a block need not wait for each other.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace rwkv {

/// Bytes [begin, end) of memory.
struct MemoryRange {
  uintptr_t begin, end;
};

struct LaneStep {
  std::vector<MemoryRange> reads, writes;
  double seconds = 0;  ///< a guess, to balance the lanes
};

struct LaneSlot {
  int lane = 0;
  std::vector<int32_t> waits;  ///< steps of other lanes that must be done before
  bool awaited = false;        ///< some step of another lane waits for this one
};

/// Spreads steps over at most `lanes` lanes. Within a lane steps keep their order; every pair of
/// conflicting steps is ordered by lanes and waits, directly or through others. Each lane's first
/// step may start at once: the caller orders lanes against what comes before and after.
std::vector<LaneSlot> schedule_lanes(std::span<const LaneStep> steps, int lanes);

}  // namespace rwkv
