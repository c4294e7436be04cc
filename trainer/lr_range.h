#pragma once
/// Learning-rate range test: the rate grows exponentially from step to step, the loss tells where
/// it is too low, good and too high.
/// source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3

#include <string>
#include <vector>

#include "trainer/config.h"
#include "trainer/trainer.h"

namespace rwkv {

struct LrRangeOptions {
  double lr_min = 1e-6, lr_max = 1;
  int64_t steps = 100;
};

struct LrRangeResult {
  struct Point {
    double lr, loss, smooth;  ///< smooth: running mean over about ten steps
  };
  std::vector<Point> points;  ///< up to where the loss exploded
  double steepest = 0;        ///< rate at which the smooth loss falls fastest per decade
  double lowest = 0;          ///< rate at which it is lowest
  bool fell = false;          ///< the loss fell at all: otherwise nothing is suggested by it
  bool rose = false;      ///< it rose or exploded beyond `lowest`: else the test ended too early
  double suggestion = 0;  ///< a tenth of `lowest`
  std::string json_path, picture_path;  ///< picture: empty without gnuplot
  std::string picture_problem;          ///< why there is none though there is a gnuplot; or empty
  /// Set, and nothing judged or written, if a signal came before there were three points.
  bool stopped_early = false;
};

/// Trains from initial weights on the config's data and optimizer; stops early when the smooth loss
/// doubles its lowest value or is not finite. Writes find_lr.json and, if gnuplot is installed,
/// find_lr.png to config.run_dir(); no checkpoints. Throws as run_training.
LrRangeResult find_lr(const TrainConfig& config, const TrainerOptions& options,
                      const LrRangeOptions& range);

/// Fills in steepest, lowest, fell, rose (unless it is true already) and suggestion from the
/// points.
void judge_lr_range(LrRangeResult& result);

}  // namespace rwkv
