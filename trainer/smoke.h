#pragma once
/// A short timed run: does everything work on this machine, and how fast is a step?

#include <span>

#include "trainer/config.h"
#include "trainer/trainer.h"

namespace rwkv {

/// The config of a smoke run: batch 2, context 1024, 2 epochs of 50 steps, one micro-batch, each
/// unless --set says otherwise (train.steps is then both epochs together).
TrainConfig smoke_config(TrainConfig config);

struct SmokeResult {
  int64_t steps_per_epoch = 0;
  double first_epoch_ms = 0, second_epoch_ms = 0;  ///< mean time per step
  /// Single steps of the second epoch.
  double median_ms = 0, minimum_ms = 0, maximum_ms = 0;
  double first_loss = 0, last_loss = 0;
  double tokens_per_s = 0, mfu = 0;  ///< second epoch
  std::string data;                  ///< what was read
};

/// Runs full training steps: batch loading, forward, backward, clipping, update. If the config's
/// training data is absent, on random tokens, and says so. Writes nothing, except a checkpoint at
/// the end if --set checkpoint.dir asked for it. Prints a line every ten steps unless quiet.
/// Throws as run_training; NonFiniteError for a non-finite step.
/// `initial`: starting values of all parameters (ParamStore::flat); empty: drawn.
SmokeResult run_smoke(const TrainConfig& config, const TrainerOptions& options,
                      std::span<const float> initial = {});

}  // namespace rwkv
