#pragma once
/// The training loop. Read this after model/rwkv.h.

#include <cstdint>
#include <functional>
#include <string>

#include "data/tokenizer/tokenizer.h"
#include "model/rwkv.h"
#include "trainer/config.h"
#include "trainer/train_step.h"

namespace rwkv {

/// What a text sample is drawn from. Everything stays valid during the call only.
struct SampleRequest {
  const Model& model;
  const ParamStore& values;
  const Tokenizer& tokenizer;
  std::string prompt;
  int64_t tokens;
  double temperature, top_p;
  uint64_t seed;
};

struct TrainerOptions {
  /// Continue from the newest good checkpoint of the run folder; from the start if it has none.
  bool resume = false;
  std::string init_file;  ///< weights to start from, as newest_model() takes them; empty: random
  Device device = Device::kCpu;
  /// The ranks of the run, or null for one process. All of them call run_training alike;
  /// config.ranks is their number. Rank 0 owns the run folder, reads and writes checkpoints, and
  /// reports.
  Communicator* comm = nullptr;
  bool quiet = false;  ///< nothing on stdout
  /// Timelines of the steps trace_first to trace_last (counted from 1, as the log does) of all
  /// ranks go to this file, for chrome://tracing or Perfetto; empty: none.
  std::string trace;
  int64_t trace_first = 3, trace_last = 5;
  /// Draws text (generation belongs to inference/, which the trainer does not know).
  std::function<std::string(const SampleRequest&)> sample;
  /// One rank only. Sees the gradients of every step before the update: probes and tests. (On CUDA
  /// they are on the device and the store is empty.)
  std::function<void(int64_t step, ParamStore& grads)> on_gradients;
};

struct RunResult {
  int64_t steps = 0;  ///< done by the run in total
  double loss = 0;    ///< of the last step
  double valid_loss = -1;
  std::string stopped_by;       ///< "SIGTERM", "SIGINT" or empty when the run is complete
  std::string last_checkpoint;  ///< path
};

/// Trains from start, or from a checkpoint, to the end of the run or to a signal; writes
/// checkpoints and the log to config.run_dir().
///
/// Order of a step n = 1, 2, ...: micro-batches, update, log line, validation, text sample,
/// checkpoint. All of it depends on the config, the data and n only, so that a resumed run equals
/// an undisturbed one bit for bit.
///
/// Throws ConfigError (config does not fit data, machine or checkpoint; the folder already holds
/// checkpoints and resume is off), IoError, DeviceError, and NonFiniteError after
/// train.max_nonfinite non-finite steps in a row, naming the last good checkpoint.
RunResult run_training(const TrainConfig& config, const TrainerOptions& options);

/// Throws on all ranks, naming what differs, unless they were started alike: build, device, config,
/// run folder, --resume, --init and --trace. Programs call it before they connect devices;
/// run_training does so again. `group` null: nothing.
void require_same_start(HostGroup* group, const TrainConfig& config, const TrainerOptions& options);

/// How a config becomes a step: shared by training, smoke runs, --find-lr and --dry-run.
TrainStepOptions step_options(const TrainConfig& config, Device device,
                              Communicator* comm = nullptr);
InitOptions init_options(const TrainConfig& config);

/// Rate of one large f32 matrix product on this machine with the current threads, in TFLOP/s: what
/// the model-flops utilisation refers to unless limits.peak_tflops says otherwise. Takes about
/// 0.2 s. On CUDA nothing is measured: the H100's and H200's dense bf16 peak by their data sheet.
double measure_peak_tflops(Context& ctx);

}  // namespace rwkv
