#include "trainer/checkpoint_store.h"

#include <chrono>
#include <filesystem>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "data/io/atomic_file.h"
#include "kernels/core/error.h"
#include "trainer/shard_checkpoint.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

/// Folders and files of other machines may be seen a little later (network file systems).
constexpr std::chrono::seconds kPatience{10};

void wait_for_folder(const std::string& path, int rank) {
  std::error_code ec;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!fs::is_directory(path, ec)) {
    RWKV_CHECK(std::chrono::steady_clock::now() < end, IoError, "writing the part of rank ", rank,
               " to ", path, ": rank 0 made this folder, it is not to be seen here; ",
               kSharedFolderAdvice);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

/// What a rank says about its file.
struct FileRecord {
  uint64_t bytes = 0;
  uint64_t seal = 0;
};

}  // namespace

void CheckpointStore::on_rank_0(const std::function<void()>& work) {
  agree(group(), [&] {
    if (leads()) work();
  });
}

CheckpointContent CheckpointStore::content() {
  return {config_.model, step_.model().params(), step_.values(), step_.optimizer().m(),
          step_.optimizer().v()};
}

CheckpointStore::Loaded CheckpointStore::load_newest(
    const std::string& dir, const std::function<void(const std::string&)>& skipped) {
  // All ranks go through the list of rank 0.
  std::string names;
  if (leads())
    for (const CheckpointFile& f : list_checkpoints(dir)) names += str(f.step, " ", f.path, "\n");
  if (group() != nullptr) names = group()->broadcast(names);
  std::vector<CheckpointFile> files;
  std::istringstream in(names);
  for (CheckpointFile f; in >> f.step && in.get() && std::getline(in, f.path);) files.push_back(f);
  Loaded loaded;
  std::string failure;
  try {
    rwkv::load_newest(
        dir, files, [&](const std::string& path) { loaded = load(path); },
        [&](const std::string& why) {
          if (leads()) skipped(why);
        });
  } catch (const IoError& e) {
    failure = e.what();
  }
  on_rank_0([&] { RWKV_CHECK(failure.empty(), IoError, failure); });
  return loaded;
}

bool CheckpointStore::all_read(const std::string& path) {
  if (!parallel()) return false;
  char shards = is_shard_folder(path) ? 1 : 0;  // rank 0's answer counts
  group()->broadcast(&shards, 1);
  return shards != 0;
}

CheckpointStore::Loaded CheckpointStore::load(const std::string& path) {
  Loaded l{.state = {}, .path = path, .config_json = {}};
  if (all_read(path)) {
    load_shards(l);
    return l;
  }
  on_rank_0([&] { l.state = read_checkpoint(path, content(), &l.config_json); });
  step_.upload();
  return l;
}

void CheckpointStore::load_shards(Loaded& l) {
  std::optional<ShardCheckpoint> from;
  agree(group(), [&] {
    from.emplace(l.path, config_.model, step_.model().params());
    from->check(comm_->rank(), comm_->size());
  });
  l.state = from->state();
  l.config_json = from->config_json();
  const auto parts = step_.shards()->layout().parts(comm_->rank());
  step_.shards()->upload_shards([&](StatePart part, std::span<float> shard) {
    agree(group(), [&] {
      for (const ShardLayout::Part& p : parts)
        from->read(part, p.id, p.begin,
                   shard.subspan(static_cast<size_t>(p.at), static_cast<size_t>(p.count)));
    });
  });
}

void CheckpointStore::require_shared_folder(const std::string& dir) {
  if (!parallel()) return;
  // A folder as that of a checkpoint; a killed run's is removed as those are.
  const std::string probe = (fs::path(dir) / "step_ranks").string();
  const std::string temp = CheckpointFolder::temp_path_of(probe);
  std::optional<CheckpointFolder> folder;
  on_rank_0([&] { folder.emplace(probe); });
  const std::string bytes = "a rank was here";
  agree(group(), [&] {
    wait_for_folder(temp, comm_->rank());
    write_file_atomic((fs::path(temp) / shard_file_name(comm_->rank())).string(), bytes);
  });
  on_rank_0([&] {
    std::vector<ShardIndex::File> files;
    for (int r = 0; r < comm_->size(); ++r)
      files.push_back({shard_file_name(r), bytes.size(), 0, {}});
    require_shard_files(temp, files, kPatience);
  });
}

std::string CheckpointStore::save(const std::string& dir, const TrainerState& state,
                                  const TokenizerBlob& tokenizer) {
  TrainConfig stored = config_;
  stored.checkpoint.dir.clear();  // so that equal runs write equal files wherever they lie
  const std::string path =
      parallel() ? shard_checkpoint_path(dir, state.step) : checkpoint_path(dir, state.step);
  if (parallel()) {
    save_shards(path, state, config_json(stored), tokenizer);
    return path;
  }
  step_.download();
  on_rank_0([&] { write_checkpoint(path, content(), state, config_json(stored), tokenizer); });
  return path;
}

void CheckpointStore::save_shards(const std::string& path, const TrainerState& state,
                                  const std::string& config_json, const TokenizerBlob& tokenizer) {
  ShardedParams& shards = *step_.shards();
  ShardIndex index = plan_shards(step_.model().params(), shards.layout());
  const std::string temp = CheckpointFolder::temp_path_of(path);
  std::optional<CheckpointFolder> folder;
  on_rank_0([&] { folder.emplace(path); });
  ShardIndex::File mine;
  agree(group(), [&] {
    wait_for_folder(temp, comm_->rank());
    ShardWriter writer(temp, comm_->rank(), index, shards.layout());
    shards.download_shards(
        [&](StatePart part, std::span<const float> shard) { writer.write(part, shard); });
    mine = writer.finish();
  });
  const FileRecord record{mine.bytes, mine.seal};
  std::vector<FileRecord> records(index.files.size());
  group()->all_gather(&record, sizeof record, records.data());
  on_rank_0([&] {
    for (size_t r = 0; r < records.size(); ++r) {
      index.files[r].bytes = records[r].bytes;
      index.files[r].seal = static_cast<uint32_t>(records[r].seal);
    }
    // Before the index makes a checkpoint of them.
    require_shard_files(temp, index.files, kPatience);
    write_shard_index(temp, config_.model, index, state, config_json, tokenizer);
    folder->commit();
  });
}

}  // namespace rwkv
