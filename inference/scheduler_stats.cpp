#include "inference/scheduler_stats.h"

#include <algorithm>

namespace rwkv {

void LatencyHistogram::add(double seconds) {
  const auto at = std::ranges::lower_bound(kBounds, seconds) - kBounds.begin();
  ++counts[static_cast<size_t>(at)];
  sum += seconds;
  ++count;
}

}  // namespace rwkv
