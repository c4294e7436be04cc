#pragma once
/// What a run would take, without data, memory or a start.

#include <string>

#include "trainer/config.h"

namespace rwkv {

/// Parameter counts, tokens per step, memory by consumer against what the machine has, plan
/// summary. Allocates none of it. Throws ConfigError if the config does not fit together.
std::string dry_run_report(const TrainConfig& config, Device device);

/// Every step of the plan with its buffers (--dump-plan).
std::string dump_plan(const TrainConfig& config, Device device);

}  // namespace rwkv
