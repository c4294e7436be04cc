#pragma once
/// The configuration of a training run: defaults (those of RWKV-7; for RWKV-4 its own recipe where
/// it differs), then a JSON file, then --set, with the origin of every value. docs/training.md
/// lists the keys.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/graph/plan.h"
#include "trainer/schedule.h"

namespace rwkv {

struct TrainConfig {
  std::string name;  ///< stem of the config file; names the run folder when checkpoint.dir is empty
  ModelConfig model;  ///< from an object in the file or from a model file, see load_config

  struct Data {
    std::string train, valid;  ///< token files or binidx data; "synthetic" makes tokens up
    std::string sampler = "prime";
    int64_t magic_prime = 0;  ///< of the sampler prime; 0: the largest that fits
    std::string tokenizer;    ///< of binidx data: a name or a vocabulary file; empty: unknown
  } data;
  struct Train {
    int64_t context = 512;      ///< T, tokens per sequence
    int64_t batch = 8;          ///< B, sequences per micro-batch
    int64_t micro_batches = 1;  ///< per optimiser step
    int64_t steps = 0, exit_tokens = 0;
    double epochs = 0;  ///< passes over the training file; the run ends at the first of the three
    int64_t seed = 1;
    std::string grad_checkpointing = "none";
    int64_t recompute_blocks = 0;  ///< with "block": the first so many, 0: all
    double clip = 1;
    bool l2wrap = true;
    int64_t loss_chunk_tokens = 0;
    int64_t max_nonfinite = 10;
  } train;
  struct Optimizer {
    double lr = 6e-4, lr_final = 6e-5;
    std::string schedule = "cosine";
    int64_t warmup = 10;
    double warmup_start = -1;  ///< first factor of the warm-up; -1: the architecture's recipe
    double decay_part = 0.2;   ///< wsd: the last part of the run, during which the rate falls
    int64_t hold = 0;          ///< exponential: steps before the fall begins
    double beta1 = 0.9, beta2 = 0.99, eps = 1e-18, weight_decay = 0.1;
  } optimizer;
  struct Kernels {
    std::string wkv7 = "auto", wkv4 = "auto";
    std::string dtype = "auto";  ///< of activations: auto, f32, bf16
    std::string gemm = "measured";
    bool launch_graphs = true;
    int64_t lanes = 0;
  } kernels;
  struct Eval {
    int64_t every = 0, batches = 8;
  } eval;
  struct Sample {
    int64_t every = 0;
    std::string prompt = "\n";
    int64_t tokens = 64;
    double temperature = 1, top_p = 0.9;
  } sample;
  struct Checkpoint {
    std::string dir;
    int64_t every = 0;
    int64_t keep_last = 2, keep_every = 0;
  } checkpoint;
  struct Log {
    int64_t every = 1, print_every = 10;
    bool tensorboard = true;
  } log;
  /// Of runs on several ranks.
  struct Dist {
    int64_t zero = 1;
    std::string exchange = "f32";
    bool overlap = true;
    bool copy_engines = true;
    int64_t parcel = -1;  ///< elements, see ShardLayout
    std::string checkpoint = "gathered";
  } dist;
  struct Limits {
    double peak_tflops = 0;
    int64_t memory_mib = 0;
  } limits;

  /// By dotted key: "default", "default of rwkv4", "file PATH", "preset NAME" or "--set". Keys of
  /// the model are "model.n_layer", ...
  std::map<std::string, std::string> origin;
  bool set_by_user(std::string_view key) const;  ///< the value came from --set

  /// Processes that share a step. Not a key: the launch says it.
  int64_t ranks = 1;

  int64_t tokens_per_step() const {
    return train.context * train.batch * train.micro_batches * ranks;
  }
  std::string run_dir() const;  ///< checkpoint.dir, or runs/NAME
  GradCheckpointing grad_checkpointing() const;
  /// Asks for a WKV variant, whatever the architecture.
  void set_wkv(const std::string& wanted) { kernels.wkv7 = kernels.wkv4 = wanted; }
  /// The WKV variant that is asked for, of the model's architecture.
  std::string wkv() const { return model.architecture == "rwkv4" ? kernels.wkv4 : kernels.wkv7; }
  /// auto: bf16 on CUDA, f32 on the CPU. Throws ConfigError for bf16 on the CPU.
  DType dtype(Device device) const;
  /// Optimiser steps of the whole run, and the learning rate over them. `data_tokens` is the size
  /// of the training file (epochs count it; 0 if unknown). Throws ConfigError if nothing ends it.
  int64_t total_steps(int64_t data_tokens) const;
  Schedule schedule(int64_t data_tokens) const;
};

/// `config`: a path, or the bare name of a config that is searched for in ./configs, then in the
/// installed share folder, then in the source tree of the build. `settings`: "key=value" each, the
/// value being JSON or a bare string; later ones win. An empty `config` means defaults only.
/// Throws ConfigError: unknown keys name the nearest known one; wrong types and values out of range
/// name the key, what was found and what was expected.
TrainConfig load_config(const std::string& config, const std::vector<std::string>& settings);
/// The same from JSON text; `where` names it in errors and origins ("preset NAME" is no file).
TrainConfig parse_config(const std::string& json_text, const std::string& where,
                         const std::vector<std::string>& settings);

/// One line of --print-config.
struct ConfigEntry {
  std::string key, value, origin, help;  ///< value as JSON
};
std::vector<ConfigEntry> config_entries(const TrainConfig& config);
/// The table of --print-config: key, value, origin.
std::string print_config(const TrainConfig& config);
/// All values as one JSON object that load_config reads back (what checkpoints store).
std::string config_json(const TrainConfig& config);

/// Where configs are searched, in order (the folders need not exist).
std::vector<std::string> config_folders();
/// "configs/model" files and presets found there, for messages.
std::string resolve_config_path(const std::string& name, const std::string& subfolder);

}  // namespace rwkv
