#pragma once
/// Predictions for many ranks from records of rwkv-bench scale.

#include <string>
#include <vector>

#include "model/config.h"
#include "tools/bench/scale_model.h"
#include "trainer/train_step.h"

namespace rwkv::bench {

/// A row of a record: what it says of one model, shape and stage.
struct ScaleRow {
  std::string shape;
  TrainStepOptions options;  ///< batch, tokens, zero, exchange, recomputation
  StepProfile profile;       ///< of a rank alone; if there was none, of rank 0 among all
  bool alone = true;         ///< the former
  double seconds = 0;        ///< per step, of all ranks together
  double efficiency = 0;     ///< 0: not measured
  double flops = 0;
};
struct ScaleRecord {
  ModelConfig model;
  int ranks = 2;
  bool overlap = true;
  bool copy_engines = false;  ///< moved gradients and matrices; NCCL's kernels otherwise
  std::vector<MeasuredCollective> reduce_scatter, all_gather;  ///< empty: not measured
  std::vector<ScaleRow> rows;                                  ///< those with a profile
};
/// Throws ConfigError, IoError.
ScaleRecord read_scale_record(const std::string& path);

/// What fits the records of one way to exchange best.
struct ScaleFit {
  Cluster cluster;
  double slowdown = 0.2;  ///< measured with exchanges that outlast kernels, see docs/scaling.md
  double stall = 0;
};
/// Of the records with copy engines or of those without; one of them at least has collectives.
ScaleFit fit_records(const std::vector<ScaleRecord>& records, bool copy_engines);
ScaleCase case_of(const ScaleRecord& record, const ScaleRow& row, const ScaleFit& fit, int ranks,
                  int zero);

struct SimulateOptions {
  std::vector<std::string> records;
  std::vector<int> ranks = {4, 8, 16, 32, 64, 128, 256, 512, 1024};
  std::vector<int> cards = {8, 1};  ///< network cards per node of eight
  std::string json;
  int64_t parcel = -1;  ///< dist.parcel, that predictions are for
};
/// Prints the fits, predictions beside what was measured, and efficiencies: from records of copy
/// engines for the ranks of one machine, from the others for all. Returns the exit code.
int run_simulation(const SimulateOptions& options);

}  // namespace rwkv::bench
