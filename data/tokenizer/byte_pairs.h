#pragma once
/// Byte pair encoding (Sennrich et al. 2016): the merge rules and their application.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace rwkv {

struct PairMerge {
  int32_t left, right, merged;  ///< token ids
};

/// Repeatedly merges the adjacent pair whose rule has the lowest rank, the leftmost of equals,
/// until no rule applies. Immutable after construction.
class BytePairs {
 public:
  /// Rules in the order of their ranks; ids are not negative. Of two rules for one pair the second
  /// counts.
  explicit BytePairs(const std::vector<PairMerge>& rules);

  /// Replaces `symbols` by what is left after merging. Time n^2 for short sequences, n log n else.
  void merge(std::vector<int32_t>& symbols) const;

 private:
  static constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  struct Slot {
    uint64_t pair = std::numeric_limits<uint64_t>::max();
    uint32_t rank = kNone;
  };
  static uint64_t pair_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t pair) const {
    return static_cast<size_t>(pair * 0x9E3779B97F4A7C15u >> shift_);
  }
  uint32_t rank_of(int32_t left, int32_t right) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;

  std::vector<Slot> slots_;      ///< open addressing, at most half full
  int shift_ = 0;                ///< 64 - log2 of the number of slots
  std::vector<int32_t> merged_;  ///< by rank
};

}  // namespace rwkv
