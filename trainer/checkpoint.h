#pragma once
/// Training checkpoints: model files (model/weights.h) with what a resumed run needs besides.
///
///   everything of a model file: /model, /weights, /tokenizer
///   /optimizer/m/NAME, /optimizer/v/NAME   f32, shaped like /weights/NAME
///   /trainer/format   string "greylag-checkpoint 1"
///   /trainer/state    string: JSON of TrainerState, see docs/training.md
///   /trainer/config   string: JSON of the whole configuration (config_json)
///   /trainer/gemm_algorithms   string: of CUDA runs: which algorithms their products use
///   attribute "crc32" on every dataset: of the values' bytes, or of the string's bytes
///   after the end of the HDF5 file: a seal over all of it, see data/io/seal.h
///
/// Several ranks may write a folder with a file each instead: trainer/shard_checkpoint.h. What
/// reads here takes both.
///
/// A checkpoint appears complete under its name, step_00000500.h5 after 500 steps, or not at all.
/// Equal runs write equal bytes: nothing in it depends on time, machine or folder.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/params.h"
#include "model/weights.h"

namespace rwkv {

/// Where a run stands. Random numbers are counter-based: seed and position are all of their state.
struct TrainerState {
  int64_t step = 0;     ///< optimiser steps done, skipped ones included: drives data and schedule
  int64_t updates = 0;  ///< steps that changed the parameters: the n of AdamW
  int64_t samples = 0;  ///< sequences consumed: the sampler's position
  int64_t tokens = 0;
  int64_t nonfinite_total = 0, nonfinite_in_a_row = 0;
  double loss_avg = 0;          ///< running mean, see Trainer
  double loss_avg_weight = 0;   ///< 1 - 0.98^steps: undoes its start at zero
  double last_valid_loss = -1;  ///< -1: none yet
  double best_valid_loss = -1;
  int64_t best_valid_step = -1;
  uint64_t seed = 0;
  std::string sampler;    ///< "prime", "shuffle", "sequential", "synthetic"
  std::string data_hash;  ///< identifies the training file's content
  int64_t data_tokens = 0;
  std::string wkv;  ///< variant that the run resolved to
  std::string code_version;
  int64_t ranks = 1;            ///< processes that shared the last step
  std::string gemm_algorithms;  ///< of a CUDA run, see kernels/core/gemm.h; a dataset of its own
};

/// The state as the JSON of a checkpoint, without gemm_algorithms, and back; `where` names it in
/// errors (IoError).
std::string trainer_state_json(const TrainerState& state);
TrainerState parse_trainer_state(const std::string& text, const std::string& where);

/// "0.1.0 (b6d30e0)": what checkpoints and logs name.
std::string code_version();

/// Everything a checkpoint holds, by reference.
struct CheckpointContent {
  const ModelConfig& model;
  const ParamRegistry& params;
  ParamStore &values, &m, &v;
};

/// Writes atomically. Throws IoError (directory missing or read-only, disk full): the target is
/// then as it was before.
void write_checkpoint(const std::string& path, const CheckpointContent& content,
                      const TrainerState& state, const std::string& config_json,
                      const TokenizerBlob& tokenizer);

/// Fills values and moments. Throws IoError naming file and dataset if the file is truncated,
/// corrupt or foreign (stores may then be half filled), ConfigError if it holds another model.
/// `config_json`, unless null, receives the config that was stored.
TrainerState read_checkpoint(const std::string& path, const CheckpointContent& content,
                             std::string* config_json = nullptr);
/// State and config only. Throws IoError.
TrainerState read_checkpoint_state(const std::string& path, std::string* config_json = nullptr);

/// That a checkpoint is whole and nothing in it has changed: all of it is read. Throws IoError.
void check_checkpoint_files(const std::string& path);

/// Weights of anything that ModelFile opens (--init). Throws as read_checkpoint.
void read_initial_weights(const std::string& path, const ModelConfig& model,
                          const ParamRegistry& params, ParamStore& values);

struct CheckpointFile {
  int64_t step;
  std::string path;
};
/// Checkpoints of a run folder, oldest first; none if the folder does not exist.
std::vector<CheckpointFile> list_checkpoints(const std::string& dir);
std::string checkpoint_path(const std::string& dir, int64_t step);

/// Calls `load` with one path after the other, from the newest on, until it throws nothing that
/// ends with IoError's exit code; `skipped` is told of what it threw. Returns the path that was
/// loaded. Throws IoError listing all of them if none was, ConfigError if there are no files.
std::string load_newest(const std::string& dir, std::span<const CheckpointFile> files,
                        const std::function<void(const std::string& path)>& load,
                        const std::function<void(const std::string&)>& skipped);

/// The model to read where `path` is named: a model file, checkpoint or transformers folder as it
/// is, for a run folder its newest checkpoint that is whole. `skipped` is told of those that are
/// not. Throws IoError if a folder has none.
std::string newest_model(const std::string& path,
                         const std::function<void(const std::string&)>& skipped);

/// Renames the checkpoints newer than `path`, the one that a run resumed from, to NAME.damaged:
/// pruning counts by step and would keep them in place of good ones. Returns how many; throws
/// IoError.
size_t set_aside_newer_checkpoints(const std::string& dir, const std::string& path);

/// Removes all but the newest `keep_last` and those whose step is a multiple of `keep_every`.
void prune_checkpoints(const std::string& dir, int64_t keep_last, int64_t keep_every);

/// Removes what killed runs left half written (names ending in .tmp); returns how many files. Only
/// for the holder of the folder's RunLock: nobody else writes there.
size_t remove_stale_run_temporaries(const std::string& dir);

/// Held while a run writes to its folder, which it creates. Released by the system on any death.
class RunLock {
 public:
  /// Throws ConfigError if another process trains there, IoError if the folder cannot be used.
  explicit RunLock(const std::string& dir);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace rwkv
