#include "trainer/checkpoint.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <tuple>

#include "data/io/atomic_file.h"
#include "data/io/crc32.h"
#include "data/io/hdf5_file.h"
#include "data/io/hdf5_shards.h"
#include "data/io/seal.h"
#include "data/io/tensor_file.h"
#include "kernels/core/error.h"
#include "model/model_file.h"
#include "trainer/checkpoint_header.h"
#include "trainer/shard_checkpoint.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "greylag-checkpoint 1";
constexpr const char* kNoSeal = " (--init takes files with weights only)";
constexpr std::string_view kPrefix = "step_", kSuffix = ".h5";

uint32_t crc_of(const Hdf5File& file, const std::string& name) {
  if (file.type(name) == H5Type::kString) {
    const std::string text = file.read_string(name);
    return crc32_of(std::span<const char>(text));
  }
  const auto bytes = file.read<uint8_t>(name);
  return crc32_of(std::span<const uint8_t>(bytes));
}

/// Datasets outside of the parameter groups, which carry their own checksums.
std::vector<std::string> small_datasets(const Hdf5File& file) {
  std::vector<std::string> names;
  for (const char* group : {"model", "tokenizer", "trainer"})
    if (file.exists(group))
      for (const auto& name : file.list_datasets(group)) names.push_back(str(group, "/", name));
  return names;
}

void require_checksums(const Hdf5File& file, const char* group) {
  for (const auto& name : file.list_datasets(group))
    RWKV_CHECK(file.has_attr(str(group, "/", name), "crc32"), IoError, "loading ", group, "/", name,
               " from ", file.path(), ": it has no checksum; was the file changed by a tool?");
}

/// Everything that should hold before any number of the file is believed.
void check_checkpoint(const Hdf5File& file) {
  for (const char* name : {"trainer/format", "trainer/state", "trainer/config", "model/config"})
    RWKV_CHECK(file.exists(name), IoError, "loading ", file.path(), ": there is no ", name,
               "; expected a training checkpoint (use --init for a file with weights only)");
  const std::string format = file.read_string("trainer/format");
  RWKV_CHECK(format == kFormat, IoError, "loading ", file.path(), ": trainer/format is '", format,
             "', this version reads '", kFormat, "'");
  for (const auto& name : small_datasets(file)) {
    RWKV_CHECK(file.has_attr(name, "crc32"), IoError, "loading ", name, " from ", file.path(),
               ": it has no checksum; was the file changed by a tool?");
    RWKV_CHECK(static_cast<uint32_t>(file.attr_int(name, "crc32")) == crc_of(file, name), IoError,
               "loading ", name, " from ", file.path(),
               ": the checksum does not match: the file is corrupt");
  }
}

TrainerState read_state(const Hdf5File& file) {
  TrainerState s = parse_trainer_state(file.read_string("trainer/state"), file.path());
  if (file.exists("trainer/gemm_algorithms"))
    s.gemm_algorithms = file.read_string("trainer/gemm_algorithms");
  return s;
}

void check_same_model(const std::string& path, const ModelConfig& found,
                      const ModelConfig& expected) {
  RWKV_CHECK(found == expected, ConfigError, "loading ", path, ": it holds the model ",
             model_config_json(found), ", the config asks for ", model_config_json(expected),
             "; use the config that the run was started with, or another checkpoint.dir");
}

}  // namespace

std::string trainer_state_json(const TrainerState& s) {
  Json j;
  j["step"] = s.step;
  j["updates"] = s.updates;
  j["samples"] = s.samples;
  j["tokens"] = s.tokens;
  j["nonfinite_total"] = s.nonfinite_total;
  j["nonfinite_in_a_row"] = s.nonfinite_in_a_row;
  j["loss_avg"] = s.loss_avg;
  j["loss_avg_weight"] = s.loss_avg_weight;
  j["last_valid_loss"] = s.last_valid_loss;
  j["best_valid_loss"] = s.best_valid_loss;
  j["best_valid_step"] = s.best_valid_step;
  j["seed"] = s.seed;
  j["sampler"] = s.sampler;
  j["data_hash"] = s.data_hash;
  j["data_tokens"] = s.data_tokens;
  j["wkv"] = s.wkv;
  j["code_version"] = s.code_version;
  if (s.ranks != 1) j["ranks"] = s.ranks;
  return j.dump();
}

TrainerState parse_trainer_state(const std::string& text, const std::string& path) {
  try {
    const Json j = Json::parse(text);
    TrainerState s;
    j.at("step").get_to(s.step);
    j.at("updates").get_to(s.updates);
    j.at("samples").get_to(s.samples);
    j.at("tokens").get_to(s.tokens);
    j.at("nonfinite_total").get_to(s.nonfinite_total);
    j.at("nonfinite_in_a_row").get_to(s.nonfinite_in_a_row);
    j.at("loss_avg").get_to(s.loss_avg);
    j.at("loss_avg_weight").get_to(s.loss_avg_weight);
    j.at("last_valid_loss").get_to(s.last_valid_loss);
    j.at("best_valid_loss").get_to(s.best_valid_loss);
    j.at("best_valid_step").get_to(s.best_valid_step);
    j.at("seed").get_to(s.seed);
    j.at("sampler").get_to(s.sampler);
    j.at("data_hash").get_to(s.data_hash);
    j.at("data_tokens").get_to(s.data_tokens);
    j.at("wkv").get_to(s.wkv);
    j.at("code_version").get_to(s.code_version);
    s.ranks = j.value("ranks", int64_t{1});
    return s;
  } catch (const nlohmann::json::exception& e) {
    throw IoError(str("loading trainer/state from ", path, ": ", e.what()));
  }
}

void write_checkpoint_header(Hdf5File& file, const TrainerState& state,
                             const std::string& config_json) {
  file.write_string("trainer/format", kFormat);
  file.write_string("trainer/state", trainer_state_json(state));
  file.write_string("trainer/config", config_json);
  if (!state.gemm_algorithms.empty())
    file.write_string("trainer/gemm_algorithms", state.gemm_algorithms);
  for (const auto& name : small_datasets(file)) file.write_attr(name, "crc32", crc_of(file, name));
}

TrainerState read_checkpoint_header(const Hdf5File& file, const ModelConfig& model,
                                    const std::string& path, std::string* config_json) {
  check_checkpoint(file);
  check_same_model(path, read_model_config(file), model);
  if (config_json != nullptr) *config_json = file.read_string("trainer/config");
  return read_state(file);
}

void write_checkpoint(const std::string& path, const CheckpointContent& content,
                      const TrainerState& state, const std::string& config_json,
                      const TokenizerBlob& tokenizer) {
  AtomicFile out(path);
  auto file = Hdf5File::create(out.temp_path());
  write_model(file, content.model, content.params, content.values, tokenizer);
  write_param_group(file, "optimizer/m", content.params, content.m);
  write_param_group(file, "optimizer/v", content.params, content.v);
  write_checkpoint_header(file, state, config_json);
  file.close();
  seal_hdf5(out.temp_path());
  out.commit();
}

/// All files of a checkpoint in several.
static TrainerState read_shards(const std::string& path, const CheckpointContent& content,
                                std::string* config_json) {
  const ShardCheckpoint from(path, content.model, content.params);
  from.check(0, 1);
  const std::array stores = {&content.values, &content.m, &content.v};
  for (size_t part = 0; part < stores.size(); ++part)
    for (size_t i = 0; i < content.params.size(); ++i) {
      const TensorView t = (*stores[part])[static_cast<ParamId>(i)];
      from.read(kStateParts[part], static_cast<ParamId>(i), 0,
                {t.f32(), static_cast<size_t>(t.numel())});
    }
  if (config_json != nullptr) *config_json = from.config_json();
  return from.state();
}

TrainerState read_checkpoint(const std::string& path, const CheckpointContent& content,
                             std::string* config_json) {
  if (is_shard_folder(path)) return read_shards(path, content, config_json);
  check_seal(path, kNoSeal);
  const auto file = Hdf5File::open(path);
  const TrainerState state = read_checkpoint_header(file, content.model, path, config_json);
  for (const char* group : {"weights", "optimizer/m", "optimizer/v"})
    if (file.exists(group)) require_checksums(file, group);
  read_weights(file, content.params, content.values);
  read_param_group(file, "optimizer/m", content.params, content.m);
  read_param_group(file, "optimizer/v", content.params, content.v);
  return state;
}

void check_checkpoint_files(const std::string& path) {
  if (is_shard_folder(path))
    ShardSet(path).check();
  else
    check_seal(path, kNoSeal);
}

TrainerState read_checkpoint_state(const std::string& path, std::string* config_json) {
  const std::string header = is_shard_folder(path) ? shard_index_path(path) : path;
  check_seal(header, kNoSeal);
  const auto file = Hdf5File::open(header);
  check_checkpoint(file);
  if (config_json != nullptr) *config_json = file.read_string("trainer/config");
  return read_state(file);
}

void read_initial_weights(const std::string& path, const ModelConfig& model,
                          const ParamRegistry& params, ParamStore& values) {
  const ModelFile file = ModelFile::open(path);
  RWKV_CHECK(file.config() == model, ConfigError, "loading ", path, ": it holds the model ",
             model_config_json(file.config()), ", the config asks for ", model_config_json(model),
             "; give the config these sizes as its \"model\"");
  file.read_all(params, values);
}

std::string checkpoint_path(const std::string& dir, int64_t step) {
  char name[40];
  std::snprintf(name, sizeof name, "step_%08lld.h5", static_cast<long long>(step));
  return (fs::path(dir) / name).string();
}

std::vector<CheckpointFile> list_checkpoints(const std::string& dir) {
  std::vector<CheckpointFile> files;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(dir, ec)) {
    const std::string name = entry.path().filename().string();
    // A single file, or the folder of one that several ranks wrote.
    const std::string_view suffix = name.ends_with(kSuffix) ? kSuffix : kShardSuffix;
    if (!name.starts_with(kPrefix) || !name.ends_with(suffix)) continue;
    const char* begin = name.data() + kPrefix.size();
    const char* end = name.data() + name.size() - suffix.size();
    int64_t step = 0;
    const auto [rest, error] = std::from_chars(begin, end, step);
    if (error == std::errc() && rest == end && begin != end)
      files.push_back({step, entry.path().string()});
  }
  std::ranges::sort(files, {}, [](const CheckpointFile& f) { return std::tie(f.step, f.path); });
  return files;
}

std::string load_newest(const std::string& dir, std::span<const CheckpointFile> files,
                        const std::function<void(const std::string& path)>& load,
                        const std::function<void(const std::string&)>& skipped) {
  RWKV_CHECK(!files.empty(), ConfigError, "resuming from ", dir,
             ": there are no checkpoints (step_*); start without --resume");
  std::string reasons;
  for (size_t i = files.size(); i-- > 0;) {
    try {
      load(files[i].path);
      return files[i].path;
    } catch (const Error& e) {  // of several ranks, what they agreed on
      if (e.exit_code() != IoError("").exit_code()) throw;
      reasons += str("\n  ", e.what());
      skipped(e.what());
    }
  }
  throw IoError(str("resuming from ", dir, ": none of its ", files.size(),
                    " checkpoints can be loaded:", reasons));
}

std::string newest_model(const std::string& path,
                         const std::function<void(const std::string&)>& skipped) {
  std::error_code ec;
  if (!fs::is_directory(path, ec) || is_safetensors_folder(path) || is_shard_folder(path))
    return path;
  fs::directory_iterator(path, ec);
  RWKV_CHECK(!ec, IoError, "opening the folder ", path, ": ", ec.message());
  const std::vector<CheckpointFile> found = list_checkpoints(path);
  RWKV_CHECK(
      !found.empty(), IoError, "opening ", path,
      ": there is no checkpoint in this folder and no model.safetensors; expected a run folder "
      "of rwkv-train or a transformers folder");
  for (auto file = found.rbegin(); file != found.rend(); ++file) {
    try {
      check_checkpoint_files(file->path);
      return file->path;
    } catch (const IoError& e) {
      skipped(e.what());
    }
  }
  throw IoError(str("opening ", path, ": none of its ", found.size(), " checkpoints is whole"));
}

size_t set_aside_newer_checkpoints(const std::string& dir, const std::string& path) {
  const auto files = list_checkpoints(dir);
  const auto good = std::ranges::find(files, path, &CheckpointFile::path);
  RWKV_ASSERT(good != files.end(), path, " is no checkpoint of ", dir);
  for (auto file = good + 1; file != files.end(); ++file) {
    // A folder cannot take the name of one that was set aside before, and a file would replace it.
    std::string aside = file->path + ".damaged";
    std::error_code ec;
    for (int i = 2; fs::exists(fs::symlink_status(aside, ec)); ++i)
      aside = str(file->path, ".damaged.", i);
    fs::rename(file->path, aside, ec);
    RWKV_CHECK(!ec, IoError, "renaming ", file->path, " to ", aside, ": ", ec.message());
  }
  return static_cast<size_t>(files.end() - good - 1);
}

void prune_checkpoints(const std::string& dir, int64_t keep_last, int64_t keep_every) {
  const auto files = list_checkpoints(dir);
  for (size_t i = 0; i + static_cast<size_t>(keep_last) < files.size(); ++i) {
    if (keep_every > 0 && files[i].step % keep_every == 0) continue;
    std::error_code ec;  // one that cannot be removed is no reason to stop training
    // A folder is not removed at once: it loses its name first.
    const std::string gone = files[i].path + ".old.tmp";
    fs::rename(files[i].path, gone, ec);
    fs::remove_all(gone, ec);
  }
}

size_t remove_stale_run_temporaries(const std::string& dir) {
  std::vector<fs::path> stale;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(dir, ec)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name.starts_with(kPrefix) || name.starts_with("log.jsonl.");
    if (ours && name.ends_with(".tmp")) stale.push_back(entry.path());
  }
  size_t removed = 0;
  for (const auto& path : stale) removed += fs::remove_all(path, ec) > 0 ? 1 : 0;
  return removed;
}

RunLock::RunLock(const std::string& dir) {
  std::error_code ec;
  fs::create_directories(dir, ec);
  RWKV_CHECK(!ec, IoError, "making the run folder ", dir, ": ", ec.message());
  const std::string path = (fs::path(dir) / ".lock").string();
  fd_ = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
  RWKV_CHECK(fd_ >= 0, IoError, "opening ", path, ": ", std::strerror(errno),
             "; is the folder writable?");
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    ::close(fd_);
    throw ConfigError(str("starting a run in ", dir,
                          ": another process trains there; stop it or choose another "
                          "checkpoint.dir"));
  }
}

RunLock::~RunLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace rwkv
