#include "trainer/shard_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <thread>

#include "data/io/atomic_file.h"
#include "data/io/hdf5_file.h"
#include "data/io/seal.h"
#include "kernels/core/error.h"
#include "trainer/checkpoint_header.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

constexpr const char* kReplaced = ".replaced";

Shape shape_of(const TensorSpec& spec) {
  return Shape(spec.dim.begin(), spec.dim.begin() + spec.rank);
}

void sync_folder(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // Some file systems cannot sync a folder and say EINVAL: there is nothing more to do then.
  const bool failed = fd < 0 || (::fsync(fd) != 0 && errno != EINVAL);
  const int error = errno;
  if (fd >= 0) ::close(fd);
  RWKV_CHECK(!failed, IoError, "fsync of ", path.string(), ": ", std::strerror(error));
}

}  // namespace

std::string shard_checkpoint_path(const std::string& dir, int64_t step) {
  return fs::path(checkpoint_path(dir, step)).replace_extension(kShardSuffix).string();
}

CheckpointFolder::CheckpointFolder(std::string target)
    : target_(std::move(target)), temp_(temp_path_of(target_)) {
  std::error_code ec;
  fs::remove_all(temp_, ec);  // of a killed run
  fs::create_directory(temp_, ec);
  RWKV_CHECK(!ec, IoError, "making ", temp_, ": ", ec.message());
}

CheckpointFolder::~CheckpointFolder() {
  std::error_code ec;
  if (!done_) fs::remove_all(temp_, ec);
}

void CheckpointFolder::commit() {
  sync_folder(temp_);
  const std::string parent = fs::path(target_).parent_path();
  std::error_code ec;
  if (!fs::exists(fs::symlink_status(target_, ec))) {
    fs::rename(temp_, target_, ec);
    RWKV_CHECK(!ec, IoError, "renaming ", temp_, " to ", target_, ": ", ec.message());
    done_ = true;
    sync_folder(parent);
    return;
  }
  const bool exchanged =
      ::renameat2(AT_FDCWD, temp_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0;
  if (!exchanged) replace();
  done_ = true;
  sync_folder(parent);
  fs::remove_all(exchanged ? temp_ : target_ + kReplaced, ec);
}

void CheckpointFolder::replace() {
  const std::string old = target_ + kReplaced;
  std::error_code ec;
  fs::remove_all(old, ec);
  fs::rename(target_, old, ec);
  RWKV_CHECK(!ec, IoError, "renaming ", target_, " to ", old, ": ", ec.message());
  fs::rename(temp_, target_, ec);
  if (!ec) return;
  std::error_code back;
  fs::rename(old, target_, back);
  throw IoError(str("renaming ", temp_, " to ", target_, ": ", ec.message()));
}

size_t recover_replaced_checkpoints(const std::string& dir) {
  std::vector<std::string> left;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(dir, ec)) {
    const std::string path = entry.path();
    if (path.ends_with(std::string(kShardSuffix) + kReplaced)) left.push_back(path);
  }
  size_t recovered = 0;
  for (const std::string& path : left) {
    const std::string name = path.substr(0, path.size() - std::strlen(kReplaced));
    if (fs::exists(fs::symlink_status(name, ec))) {
      fs::remove_all(path, ec);
      continue;
    }
    fs::rename(path, name, ec);
    RWKV_CHECK(!ec, IoError, "renaming ", path, " to ", name, ": ", ec.message());
    ++recovered;
  }
  return recovered;
}

ShardIndex plan_shards(const ParamRegistry& params, const ShardLayout& layout) {
  ShardIndex index;
  index.groups = {"weights", "optimizer/m", "optimizer/v"};
  for (const ParamSpec& p : params.specs()) index.tensors.push_back({p.name, shape_of(p.spec)});
  for (int r = 0; r < layout.ranks(); ++r) {
    ShardIndex::File file{shard_file_name(r), 0, 0, {}};
    for (const ShardLayout::Part& p : layout.parts(r))
      file.pieces.push_back({p.id, p.begin, p.count});
    index.files.push_back(std::move(file));
  }
  return index;
}

ShardWriter::ShardWriter(const std::string& folder, int rank, const ShardIndex& plan,
                         const ShardLayout& layout)
    : file_(folder, static_cast<size_t>(rank), plan) {
  for (const ShardLayout::Part& p : layout.parts(rank)) at_.push_back(p.at);
}

void ShardWriter::write(StatePart part, std::span<const float> shard) {
  RWKV_ASSERT(part == kStateParts.at(parts_), "parts come in order");
  ++parts_;
  file_.write(shard, at_);
}

void require_shard_files(const std::string& folder, std::span<const ShardIndex::File> files,
                         std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  for (size_t r = 0; r < files.size(); ++r) {
    const fs::path path = fs::path(folder) / files[r].name;
    while (true) {
      std::error_code ec;
      const uint64_t bytes = fs::file_size(path, ec);
      if (!ec && bytes == files[r].bytes) break;
      RWKV_CHECK(std::chrono::steady_clock::now() < end, IoError, "rank ", r, " wrote ",
                 files[r].bytes, " bytes to ", path.string(), ", rank 0 finds ",
                 ec ? "no such file" : str(bytes, " bytes"), "; ", kSharedFolderAdvice);
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
}

void write_shard_index(const std::string& folder, const ModelConfig& model, const ShardIndex& index,
                       const TrainerState& state, const std::string& config_json,
                       const TokenizerBlob& tokenizer) {
  AtomicFile out(shard_index_path(folder));
  Hdf5File file = Hdf5File::create(out.temp_path());
  write_model_header(file, model, tokenizer);
  file.write_string("shards/index", index.json());
  write_checkpoint_header(file, state, config_json);
  file.close();
  seal_hdf5(out.temp_path());
  out.commit();
}

ShardCheckpoint::ShardCheckpoint(const std::string& folder, const ModelConfig& model,
                                 const ParamRegistry& params)
    : set_(folder), params_(params) {
  state_ = read_checkpoint_header(set_.header(), model, folder, &config_json_);
  const ShardIndex& index = set_.index();
  RWKV_CHECK((index.groups == std::vector<std::string>{"weights", "optimizer/m", "optimizer/v"}),
             IoError, "loading ", folder, ": expected weights and both moments");
  std::map<std::string, size_t> tensors;
  for (size_t i = 0; i < index.tensors.size(); ++i) tensors[index.tensors[i].name] = i;
  for (const ParamSpec& p : params.specs()) {
    const auto found = tensors.find(p.name);
    RWKV_CHECK(found != tensors.end() && index.tensors[found->second].shape == shape_of(p.spec),
               IoError, "loading ", p.name, " from ", folder, ": there is no such tensor");
    tensor_of_param_.push_back(found->second);
  }
}

void ShardCheckpoint::check(int part, int parts) const {
  for (size_t f = static_cast<size_t>(part); f < set_.index().files.size();
       f += static_cast<size_t>(parts))
    set_.check(f);
}

void ShardCheckpoint::read(StatePart part, ParamId id, int64_t begin, std::span<float> out) const {
  set_.read(static_cast<size_t>(part), tensor_of_param_[static_cast<size_t>(id)], begin, out);
  for (const float x : out)
    RWKV_CHECK(std::isfinite(x), IoError, "loading ", params_[id].name, " from ", set_.folder(),
               ": it holds NaN or infinite values; use an earlier checkpoint");
}

}  // namespace rwkv
