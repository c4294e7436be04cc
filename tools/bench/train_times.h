#pragma once
/// rwkv-bench train-times: how much the WKV variant matters to whole training steps.

#include <string>
#include <vector>

#include "tools/bench/bench.h"

namespace rwkv::bench {

struct TrainTimesOptions : CommonOptions {
  std::vector<std::string> configs = {"rwkv4-pile169m", "pile169m"};  ///< paths or names
  std::vector<std::string> variants;  ///< names or families; empty: every one that fits
  std::vector<std::string> settings;  ///< KEY=VALUE, as rwkv-train --set
  std::string device = "cpu";
  std::string dtype;  ///< f32 or bf16; empty: f32 on the CPU, bf16 on CUDA
  std::string from;   ///< draw this JSON record instead of measuring
};

/// The smoke training of each config (2 epochs of 50 steps, batch 2, context 1024, unless set
/// otherwise) with each WKV variant of its architecture: real data pipeline, loss, clipping and
/// optimizer. Prints and records the second epoch's mean time per step, and draws bars, with the
/// step times that the comparison's first version published as a separate group. Returns the exit
/// code. Throws ConfigError, NonFiniteError, DeviceError as training does.
int run_train_times(const TrainTimesOptions& options);

}  // namespace rwkv::bench
