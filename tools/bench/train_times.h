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
  std::vector<std::string> shapes;    ///< "B,T": batch and context; empty: 2,1024, or the settings
  std::string device = "cpu";
  std::vector<std::string> dtypes;  ///< of each; empty: f32, on CUDA then bf16
  std::string from;                 ///< draw this JSON record instead of measuring
};

/// The smoke training of each config (2 epochs of 50 steps, batch 2, context 1024, without
/// recomputation, unless set otherwise) with each WKV variant of its architecture, in each shape
/// and type: real data pipeline, loss, clipping and optimizer. Prints and records the second
/// epoch's mean time per step, and draws bars. If all runs have the shape of the comparison's first
/// version, the step times that it published are a separate group; with several shapes the bars are
/// tokens per second. Returns the exit code. Throws ConfigError, NonFiniteError, DeviceError as
/// training does.
int run_train_times(const TrainTimesOptions& options);

}  // namespace rwkv::bench
