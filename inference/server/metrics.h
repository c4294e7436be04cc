#pragma once
/// The scheduler's numbers in Prometheus' text format.

#include <map>
#include <string>

#include "inference/scheduler_stats.h"

namespace rwkv {

struct HttpStats {
  std::map<int, uint64_t> answers;  ///< by HTTP status
  int64_t connections = 0;
};

/// Names begin with rwkv_; times in seconds, sizes in bytes.
std::string prometheus_text(const SchedulerStats& stats, const HttpStats& http);

}  // namespace rwkv
