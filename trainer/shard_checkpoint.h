#pragma once
/// Checkpoints that every rank writes its part of: a folder step_00000500.shards with the layout of
/// data/io/hdf5_shards.h. index.h5 is a checkpoint (trainer/checkpoint.h) without tensors; the
/// groups are weights, optimizer/m and optimizer/v, as in a checkpoint of one file, and the cuts
/// are those of the ranks' shards, whatever dist.zero divides.
///
/// The folder has another name until the index, its last file, is written and everything is on the
/// disk; then it is renamed. Equal runs write equal bytes.

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/io/hdf5_shards.h"
#include "model/params.h"
#include "trainer/checkpoint.h"
#include "trainer/shard_layout.h"
#include "trainer/sharded_params.h"

namespace rwkv {

/// ".../step_00000500.shards"
std::string shard_checkpoint_path(const std::string& dir, int64_t step);

/// The folder of a checkpoint while it is written. One process has it.
class CheckpointFolder {
 public:
  /// Makes an empty TARGET.tmp. Throws IoError.
  explicit CheckpointFolder(std::string target);
  /// Without commit() everything is removed.
  ~CheckpointFolder();
  CheckpointFolder(const CheckpointFolder&) = delete;
  CheckpointFolder& operator=(const CheckpointFolder&) = delete;
  const std::string& temp_path() const { return temp_; }
  static std::string temp_path_of(const std::string& target) { return target + ".tmp"; }
  /// fsync, rename, fsync. One that has the name already changes places with this one, and is then
  /// removed. File systems that cannot do so (NFS, say) have a moment in which nothing has the
  /// name: see recover_replaced_checkpoints. Throws IoError; the old one has its name then.
  void commit();

 private:
  void replace();

  std::string target_, temp_;
  bool done_ = false;
};

/// Gives checkpoints of `dir` their name back that lost it because their run was killed while
/// another took their place; returns how many. Removes those whose place is taken. Only for the
/// holder of the folder's RunLock. Throws IoError.
size_t recover_replaced_checkpoints(const std::string& dir);

/// Groups, tensors and, of each rank's file, the pieces: all of the index but sizes and checksums.
ShardIndex plan_shards(const ParamRegistry& params, const ShardLayout& layout);

/// Writes the file of one rank. Throws IoError.
class ShardWriter {
 public:
  ShardWriter(const std::string& folder, int rank, const ShardIndex& plan,
              const ShardLayout& layout);
  /// The parts in the order of kStateParts, laid out as ShardLayout::parts says.
  void write(StatePart part, std::span<const float> shard);
  /// The file's entry of the index; it is on the disk then.
  ShardIndex::File finish() { return file_.finish(); }

 private:
  std::vector<int64_t> at_;
  ShardFileWriter file_;
  size_t parts_ = 0;
};

inline constexpr const char* kSharedFolderAdvice =
    "dist.checkpoint=parallel wants a run folder that all ranks share (on several machines: a "
    "network file system under the same name), dist.checkpoint=gathered does not";

/// That `folder` holds what the ranks say they wrote, files[r] by rank r: names and sizes. Waits so
/// long for network file systems. Throws IoError that names the rank.
void require_shard_files(const std::string& folder, std::span<const ShardIndex::File> files,
                         std::chrono::milliseconds patience);

/// Writes the index of a folder; `index` with the sizes and checksums of all files. Throws IoError.
void write_shard_index(const std::string& folder, const ModelConfig& model, const ShardIndex& index,
                       const TrainerState& state, const std::string& config_json,
                       const TokenizerBlob& tokenizer);

/// Reads parts of such a checkpoint.
class ShardCheckpoint {
 public:
  /// Reads the index. Throws IoError, ConfigError if it holds another model.
  ShardCheckpoint(const std::string& folder, const ModelConfig& model, const ParamRegistry& params);
  const TrainerState& state() const { return state_; }
  const std::string& config_json() const { return config_json_; }
  /// Of the files, those that `part` of `parts` ranks checks. Throws IoError.
  void check(int part, int parts) const;
  /// Elements [begin, begin + out.size()) of a parameter. Throws IoError, also if they are not
  /// finite.
  void read(StatePart part, ParamId id, int64_t begin, std::span<float> out) const;

 private:
  ShardSet set_;
  const ParamRegistry& params_;
  std::vector<size_t> tensor_of_param_;
  TrainerState state_;
  std::string config_json_;
};

}  // namespace rwkv
