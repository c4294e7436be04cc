#include "model/graph/lanes.h"

#include <algorithm>

namespace rwkv {
namespace {

bool overlap(std::span<const MemoryRange> a, std::span<const MemoryRange> b) {
  for (const MemoryRange& x : a)
    for (const MemoryRange& y : b)
      if (x.begin < y.end && y.begin < x.end) return true;
  return false;
}

bool conflict(const LaneStep& a, const LaneStep& b) {
  return overlap(a.writes, b.writes) || overlap(a.writes, b.reads) || overlap(a.reads, b.writes);
}

}  // namespace

std::vector<LaneSlot> schedule_lanes(std::span<const LaneStep> steps, int lanes) {
  std::vector<LaneSlot> slots(steps.size());
  const auto width = static_cast<size_t>(std::max(lanes, 1));
  // seen[i][l]: the last step of lane l that is done for sure when step i begins or ends.
  std::vector<std::vector<int32_t>> seen(steps.size(), std::vector<int32_t>(width, -1));
  std::vector<int32_t> tail(width, -1);
  std::vector<double> done(steps.size(), 0.0);
  for (size_t i = 0; i < steps.size(); ++i) {
    double ready = 0;
    std::vector<int32_t> before;
    for (size_t j = i; j-- > 0;)
      if (conflict(steps[j], steps[i])) {
        before.push_back(static_cast<int32_t>(j));
        ready = std::max(ready, done[j]);
      }
    // The lane on which it can begin first; among equals one whose last step it must await anyway.
    size_t best = 0;
    double best_start = 0;
    bool best_continues = false;
    for (size_t l = 0; l < width; ++l) {
      const double free = tail[l] < 0 ? 0.0 : done[static_cast<size_t>(tail[l])];
      const double start = std::max(ready, free);
      const bool continues = tail[l] >= 0 && std::ranges::find(before, tail[l]) != before.end();
      if (l == 0 || start < best_start || (start == best_start && continues && !best_continues)) {
        best = l;
        best_start = start;
        best_continues = continues;
      }
    }
    done[i] = best_start + steps[i].seconds;
    LaneSlot& slot = slots[i];
    slot.lane = static_cast<int>(best);
    std::vector<int32_t>& known = seen[i];
    if (tail[best] >= 0) known = seen[static_cast<size_t>(tail[best])];
    // Latest first: waiting for it usually covers the others.
    for (const int32_t j : before) {
      const auto other = static_cast<size_t>(slots[static_cast<size_t>(j)].lane);
      if (known[other] >= j) continue;
      slot.waits.push_back(j);
      slots[static_cast<size_t>(j)].awaited = true;
      for (size_t l = 0; l < width; ++l)
        known[l] = std::max(known[l], seen[static_cast<size_t>(j)][l]);
    }
    known[best] = static_cast<int32_t>(i);
    tail[best] = static_cast<int32_t>(i);
  }
  return slots;
}

}  // namespace rwkv
