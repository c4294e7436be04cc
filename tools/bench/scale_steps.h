#pragma once
/// Training steps of one rank alone or of all together, timed, with their timelines.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tools/bench/report.h"
#include "trainer/trace_file.h"
#include "trainer/train_step.h"

namespace rwkv::bench {

struct StepRun {
  bool fits = true;  ///< false: it needs more memory than the device of some rank has free
  Timing time;
  size_t planned_bytes = 0, used_bytes = 0;  ///< of this rank's device
  size_t free_bytes = 0;                     ///< before
  double flops = 0;                          ///< of a rank's step, by step_flops()
  int64_t recompute_blocks = 0;              ///< of how many the forward is computed twice
  std::vector<RankTimeline> timelines;       ///< by rank (alone: this one), if steps were traced
};

struct StepWish {
  ModelConfig model;
  TrainStepOptions options;  ///< comm null: this rank alone
  HostGroup* group = nullptr;
  bool choose_recompute = false;  ///< as few recomputed blocks as memory allows
  int repeats = 10, traced = 0;
};

/// 6 operations per token and element of a matrix other than the embedding (a forward and twice as
/// much for the backward), and 27 * 64 per token, channel and layer for WKV: the formula by which
/// published figures count. Recomputation does not count.
double step_flops(const ModelConfig& model, int64_t tokens);

/// One TrainStep with random tokens and parameters from a row of random numbers.
class StepRunner {
 public:
  /// Plans; run().fits tells whether it may start. A collective of wish.group.
  explicit StepRunner(const StepWish& wish);
  /// Allocates and warms up. `algorithms` of products are taken and left there, so that later runs
  /// of the same shapes measure nothing. With wish.options.comm a collective; throws as agree().
  void start(std::string& algorithms);
  void measure(int steps);  ///< adds their times, after a step that does not count
  /// Takes the timeline, if wish.traced, and returns everything.
  StepRun finish();
  const StepRun& run() const { return run_; }

 private:
  double one();

  StepWish wish_;
  HostGroup* group_;  ///< null: alone
  StepRun run_;
  std::unique_ptr<TrainStep> step_;
  std::vector<std::vector<int32_t>> batches_;
  size_t turn_ = 0;
  std::vector<double> seconds_;
};

}  // namespace rwkv::bench
