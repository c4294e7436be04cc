#pragma once
/// Checkpoints of a run on any number of ranks, in either form. Ranks take part in every call.

#include <functional>
#include <string>

#include "trainer/checkpoint.h"
#include "trainer/config.h"
#include "trainer/train_step.h"

namespace rwkv {

class CheckpointStore {
 public:
  /// All must outlive this. `step` has its memory when the calls come; `comm` is its ranks or null.
  CheckpointStore(const TrainConfig& config, TrainStep& step, Communicator* comm)
      : config_(config), step_(step), comm_(comm) {}

  struct Loaded {
    TrainerState state;
    std::string path, config_json;
  };
  /// Parameters and moments of the newest checkpoint of `dir` that is whole, to the devices;
  /// `skipped` is told on rank 0 of each that is not. Only rank 0 looks at `dir`, unless the
  /// checkpoint is in several files and dist.checkpoint is parallel. Throws on all ranks: IoError
  /// if none is whole, ConfigError if there is none or it holds another model.
  Loaded load_newest(const std::string& dir,
                     const std::function<void(const std::string&)>& skipped);
  /// With dist.checkpoint=parallel: that every rank can write to `dir` and rank 0 sees what it
  /// wrote; a checkpoint would be the first to notice. Throws IoError on all ranks.
  void require_shared_folder(const std::string& dir);
  /// Writes the checkpoint that config.dist.checkpoint asks for and returns its path. Throws
  /// IoError on all ranks; nothing is left then, and older checkpoints are as they were.
  std::string save(const std::string& dir, const TrainerState& state,
                   const TokenizerBlob& tokenizer);

 private:
  HostGroup* group() const { return comm_ == nullptr ? nullptr : &comm_->group(); }
  bool leads() const { return comm_ == nullptr || comm_->rank() == 0; }
  bool parallel() const { return comm_ != nullptr && config_.dist.checkpoint == "parallel"; }
  void on_rank_0(const std::function<void()>& work);
  CheckpointContent content();
  Loaded load(const std::string& path);
  void load_shards(Loaded& from);
  bool all_read(const std::string& path);
  void save_shards(const std::string& path, const TrainerState& state,
                   const std::string& config_json, const TokenizerBlob& tokenizer);

  const TrainConfig& config_;
  TrainStep& step_;
  Communicator* comm_;
};

}  // namespace rwkv
