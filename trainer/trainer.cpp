#include "trainer/trainer.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/gemm.h"
#include "kernels/core/parallel.h"
#include "kernels/core/trace.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_store.h"
#include "trainer/data_source.h"
#include "trainer/event_file.h"
#include "trainer/gemm_choices.h"
#include "trainer/memory.h"
#include "trainer/metrics.h"
#include "trainer/recompute.h"
#include "trainer/shard_checkpoint.h"
#include "trainer/signals.h"
#include "trainer/trace_file.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

constexpr double kAverageKeeps = 0.98;  // loss_avg: a mean over about the last 50 steps

/// Keys whose values differ between two configs, except those that say nothing about the results.
std::string changed_keys(const std::string& before_json, const std::string& now_json) {
  const auto before = nlohmann::json::parse(before_json), now = nlohmann::json::parse(now_json);
  std::string out;
  for (const auto& [section, keys] : now.items()) {
    if (section == "checkpoint" || section == "log" || section == "limits") continue;
    if (section == "dist" && before.find(section) == before.end()) continue;
    for (const auto& [key, value] : keys.items()) {
      if (section == "dist" && (key == "zero" || key == "overlap" || key == "checkpoint")) continue;
      const auto old_section = before.find(section);
      const auto old = old_section == before.end() ? nlohmann::json()
                                                   : old_section->value(key, nlohmann::json());
      if (old != value)
        out +=
            str(out.empty() ? "" : ", ", section, ".", key, " ", old.dump(), " -> ", value.dump());
    }
  }
  return out;
}

class Run {
 public:
  Run(const TrainConfig& config, const TrainerOptions& options)
      : config_(config),
        options_(options),
        comm_(options.comm),
        line_(options.quiet || !leads()),
        data_(open_train_data(config.data.train, config)),
        schedule_(config.schedule(data_.source->size())),
        total_steps_(config.total_steps(data_.source->size())),
        step_(config.model, step_options(config, options.device, options.comm)),
        checkpoints_(config, step_, options.comm),
        dir_(config.run_dir()) {}

  RunResult run() {
    StopSignals stop;
    stop_ = &stop;
    if (comm_ != nullptr) check_ranks();
    together([&] {
      train_sampler(data_, config_);  // an order that cannot be is told before memory is taken
      describe_needs();
      require_memory(step_, config_.limits.memory_mib);
    });
    if (comm_ != nullptr) require_machine_memory(*group(), step_, config_.limits.memory_mib);
    on_rank_0([&] {
      lock_.emplace(dir_);
      check_folder();
      check_trace_file();
    });
    checkpoints_.require_shared_folder(dir_);
    together([&] {
      open_validation();
      step_.allocate();
    });
    if (comm_ != nullptr) require_same(*group(), "the validation data", valid_hash_);
    start();
    on_rank_0([&] { begin_log(); });
    const auto loader =
        make_loader(data_, config_, state_.samples, comm_ == nullptr ? 0 : comm_->rank());
    started_ = last_record_ = now_seconds();
    const int64_t first = state_.step;
    while (state_.step < total_steps_ && !stopping()) {
      one_step(*loader);
      // Not within a row of non-finite steps: if the weights are what is broken, a checkpoint of
      // them would push out a good one.
      if (!stopping() && due(config_.checkpoint.every) && state_.step < total_steps_ &&
          state_.nonfinite_in_a_row == 0)
        save();
    }
    if (timeline_) write_trace();
    if (state_.step > first || result_.last_checkpoint.empty()) save();
    result_.steps = state_.step;
    result_.valid_loss = state_.last_valid_loss;
    if (stopping() && state_.step < total_steps_) {
      result_.stopped_by = stop.name();
      if (log_) log_->end(state_.step, result_.stopped_by);
      line_.message(str("stopped by ", result_.stopped_by, " after step ", state_.step,
                        "; checkpoint ", result_.last_checkpoint, " written, --resume continues"));
    } else {
      if (log_) log_->end(state_.step, "complete");
      line_.message(str("complete after ", state_.step, " steps in ",
                        format_duration(now_seconds() - started_), "; last checkpoint ",
                        result_.last_checkpoint));
    }
    return result_;
  }

 private:
  bool leads() const { return comm_ == nullptr || comm_->rank() == 0; }
  HostGroup* group() const { return comm_ == nullptr ? nullptr : &comm_->group(); }
  /// Work of every rank, or of rank 0, that may fail: then all ranks fail.
  void together(const std::function<void()>& work) { agree(group(), work); }
  void on_rank_0(const std::function<void()>& work) {
    agree(group(), [&] {
      if (leads()) work();
    });
  }
  /// Several ranks agree on it in every step.
  bool stopping() const { return comm_ == nullptr ? stop_->received() != 0 : stop_agreed_; }

  void check_ranks() {
    // Of the config, which was compared before, this is what ranks found out by themselves.
    require_same(*group(), "what train.grad_checkpointing=auto came to",
                 str(config_.train.grad_checkpointing, " ", config_.train.recompute_blocks));
    require_same(*group(), "the training data", data_.hash);
    require_same(*group(), "the WKV variant", step_.wkv_name());
    line_.message(str("ranks: ", comm_->size(), ", ", comm_->description(), ", dist.zero ",
                      config_.dist.zero, ", gradients travel as ", config_.dist.exchange,
                      comm_->device() == Device::kCpu ? ""
                      : step_.uses_copy_engines()     ? " by copy engines"
                                                      : " by kernels"));
  }

  void describe_needs() {
    line_.message(str(comm_ == nullptr ? "" : "every rank ", describe_memory(step_.memory(), 0)));
    if (options_.device == Device::kCuda)
      line_.message(str("on the host ", comm_ == nullptr ? "it " : "rank 0 ",
                        describe_memory(step_.host_memory(), 0)));
  }

  void check_folder() {
    const size_t replaced = recover_replaced_checkpoints(dir_);
    if (replaced > 0)
      line_.message(str("restored ", replaced, " checkpoints that a killed run was replacing"));
    const auto found = list_checkpoints(dir_);
    RWKV_CHECK(found.empty() || options_.resume, ConfigError, "starting a run in ", dir_,
               ": it already holds checkpoints up to step ", found.empty() ? 0 : found.back().step,
               "; continue that run with --resume, or choose another checkpoint.dir");
    const size_t stale = remove_stale_run_temporaries(dir_);
    if (stale > 0) line_.message(str("removed ", stale, " unfinished files of a killed run"));
    resuming_ = !found.empty();
    if (options_.resume && found.empty())
      line_.message(str("no checkpoint in ", dir_, " yet: starting from the beginning"));
  }

  /// The steps of a trace are long gone when it is written.
  void check_trace_file() {
    if (options_.trace.empty()) return;
    const fs::path file = options_.trace;
    const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
    std::error_code ec;
    RWKV_CHECK(fs::is_directory(folder, ec) && ::access(folder.c_str(), W_OK | X_OK) == 0, IoError,
               "--trace ", options_.trace, ": ", folder.string(),
               " is no folder that can be written to; make it, or choose another file");
    RWKV_CHECK(!fs::is_directory(file, ec), IoError, "--trace ", options_.trace,
               ": expected a file to write, found a folder; give the name of a file in it");
  }

  void open_validation() {
    if (config_.eval.every == 0 || config_.data.valid.empty()) return;
    const TrainData valid = open_train_data(config_.data.valid, config_);
    RWKV_CHECK(valid.blob.hash == data_.blob.hash, ConfigError, "validating on ",
               config_.data.valid, ": it was made with another tokenizer than ",
               config_.data.train);
    valid_hash_ = valid.hash;
    valid_.emplace(valid.source, config_.train.batch, config_.train.context,
                   config_.eval.batches * config_.ranks);
  }

  void start() {
    if (comm_ != nullptr) group()->broadcast(&resuming_, sizeof resuming_);
    if (resuming_)
      resume();
    else
      begin();
    if (comm_ != nullptr) share_state();
    step_.optimizer().set_updates(state_.updates);
    state_.wkv = step_.wkv_name();
    state_.code_version = code_version();
    state_.ranks = config_.ranks;
    const auto say = [&](const std::string& text) { line_.message(text); };
    // Rank 0 chooses the algorithms of products for all, so that ranks do not differ.
    on_rank_0([&] { state_.gemm_algorithms = prepare_step(step_, state_.gemm_algorithms, say); });
    if (comm_ == nullptr) return;
    state_.gemm_algorithms = group()->broadcast(state_.gemm_algorithms);
    together([&] {
      if (!leads()) state_.gemm_algorithms = prepare_step(step_, state_.gemm_algorithms, say);
    });
  }

  /// What rank 0 loaded is where all ranks stand.
  void share_state() {
    const std::string algorithms = group()->broadcast(state_.gemm_algorithms);
    state_ = parse_trainer_state(group()->broadcast(trainer_state_json(state_)), "rank 0");
    state_.gemm_algorithms = algorithms;
    result_.last_checkpoint = group()->broadcast(result_.last_checkpoint);
  }

  void resume() {
    const auto found = checkpoints_.load_newest(dir_, [&](const std::string& why) {
      line_.message("skipping a damaged checkpoint: " + why);
    });
    on_rank_0([&] {
      state_ = found.state;
      check_same_run(found.path, found.config_json);
      const size_t aside = set_aside_newer_checkpoints(dir_, found.path);
      if (aside > 0) line_.message(str("renamed ", aside, " damaged checkpoints to *.damaged"));
      result_.last_checkpoint = found.path;
      line_.message(str("resuming from ", found.path));
      if (!options_.init_file.empty())
        line_.message(str("--init ", options_.init_file, " is for new runs and was not read"));
    });
  }

  void begin() {
    if (options_.init_file.empty()) {
      step_.initialize(init_options(config_));
    } else {
      on_rank_0([&] {
        const std::string file = newest_model(options_.init_file, [&](const std::string& why) {
          line_.message("skipping a damaged checkpoint: " + why);
        });
        read_initial_weights(file, config_.model, step_.model().params(), step_.values());
      });
      step_.upload();
    }
    state_.seed = static_cast<uint64_t>(config_.train.seed);
    state_.sampler = config_.data.sampler;
    state_.data_hash = data_.hash;
    state_.data_tokens = data_.source->size();
  }

  /// A resumed run goes on with the same data in the same order; the rest may change, loudly.
  void check_same_run(const std::string& path, const std::string& old_config) {
    RWKV_CHECK(state_.data_hash == data_.hash, ConfigError, "resuming from ", path,
               ": the run was started on other training data (", state_.data_tokens,
               " tokens) than ", data_.source->describe(), " (", data_.source->size(),
               " tokens); use the same file, or --init to start a new run from these weights");
    RWKV_CHECK(state_.seed == static_cast<uint64_t>(config_.train.seed) &&
                   state_.sampler == config_.data.sampler,
               ConfigError, "resuming from ", path, ": the run has data.sampler ", state_.sampler,
               " and train.seed ", state_.seed, ", the config says ", config_.data.sampler, " and ",
               config_.train.seed, "; use those of the run");
    // 0 stands for the largest prime that fits.
    const int64_t largest = magic_prime(data_.source->size(), config_.train.context);
    const auto meant = [&](int64_t prime) { return prime == 0 ? largest : prime; };
    const auto old_prime =
        nlohmann::json::parse(old_config).at("data").value("magic_prime", int64_t{0});
    RWKV_CHECK(old_prime == config_.data.magic_prime ||
                   meant(old_prime) == meant(config_.data.magic_prime),
               ConfigError, "resuming from ", path, ": the run has data.magic_prime ",
               meant(old_prime), ", the config says ", meant(config_.data.magic_prime),
               "; use that of the run");
    const std::string changes = changed_keys(old_config, config_json(config_));
    if (!changes.empty()) line_.message("changed since that checkpoint: " + changes);
    if (state_.ranks != config_.ranks)
      line_.message(str("the number of ranks changed from ", state_.ranks, " to ", config_.ranks,
                        ": the order of sums, and with the same train.batch the tokens per step (",
                        config_.tokens_per_step(), ") are others"));
    if (state_.wkv != step_.wkv_name())
      line_.message(str("the WKV variant changed from ", state_.wkv, " to ", step_.wkv_name(),
                        ": results are no longer those of the undisturbed run, bit for bit"));
  }

  void begin_log() {
    log_.emplace((fs::path(dir_) / "log.jsonl").string(), resuming_ ? state_.step : -1);
    RunDescription d;
    const ParameterCount count = count_parameters(config_.model);
    d.parameters = count.used;
    d.parameters_total = count.total;
    d.total_steps = total_steps_;
    d.tokens_per_step = config_.tokens_per_step();
    d.flops_per_step = step_.flops_per_step() * static_cast<double>(config_.ranks);
    d.peak_tflops = peak_tflops_ = config_.limits.peak_tflops > 0
                                       ? config_.limits.peak_tflops
                                       : measure_peak_tflops(step_.context());
    d.memory_bytes = total_bytes(step_.memory());
    d.threads = num_threads();
    d.device = device_name(options_.device);
    d.wkv = step_.wkv_name();
    d.data = data_.source->describe();
    d.data_hash = data_.hash;
    d.data_tokens = data_.source->size();
    d.code_version = code_version();
    if (log_->empty()) log_->run(d, config_);
    if (resuming_) log_->resume(state_.step, result_.last_checkpoint);
    if (config_.log.tensorboard) events_.emplace(dir_, state_.step + 1);
    line_.message(str("training ", config_.name, ": ",
                      format_count(static_cast<double>(count.used)), " parameters, ", total_steps_,
                      " steps of ", config_.tokens_per_step(), " tokens, ", d.threads,
                      d.threads == 1 ? " thread, " : " threads, ", d.wkv));
    if (config_.train.grad_checkpointing == "block" && config_.train.recompute_blocks > 0)
      line_.message(str("the forward of ", config_.train.recompute_blocks, " of ",
                        config_.model.n_layer, " blocks is computed twice"));
  }

  bool due(int64_t every) const { return every > 0 && state_.step % every == 0; }

  void one_step(BatchLoader& loader) {
    const double lr = schedule_.at(state_.step);
    if (!options_.trace.empty() && !timeline_ && state_.step + 1 >= options_.trace_first &&
        state_.step < options_.trace_last)
      step_.watch(&timeline_.emplace(step_.context()));
    for (int64_t i = 0; i < config_.train.micro_batches; ++i) {
      const Batch& batch = loader.next();
      std::copy(batch.x.begin(), batch.x.end(), step_.tokens().begin());
      std::copy(batch.y.begin(), batch.y.end(), step_.targets().begin());
      step_.accumulate(i);
    }
    if (options_.on_gradients) options_.on_gradients(state_.step + 1, step_.grads());
    const TrainStep::Result r = step_.finish(lr, stop_->received() != 0);
    stop_agreed_ = r.stop;
    ++state_.step;
    if (timeline_ && state_.step >= options_.trace_last) write_trace();
    state_.updates = step_.optimizer().updates();
    state_.samples = static_cast<int64_t>(loader.position());
    state_.tokens += config_.tokens_per_step();
    result_.loss = r.loss;
    if (r.finite) {
      state_.loss_avg = kAverageKeeps * state_.loss_avg + (1 - kAverageKeeps) * r.loss;
      state_.loss_avg_weight = kAverageKeeps * state_.loss_avg_weight + (1 - kAverageKeeps);
      state_.nonfinite_in_a_row = 0;
    } else {
      ++state_.nonfinite_total;
      ++state_.nonfinite_in_a_row;
    }
    const bool last = state_.step == total_steps_;
    record(r, lr, last);
    if (state_.nonfinite_in_a_row >= config_.train.max_nonfinite) on_rank_0([&] { give_up(); });
    if (valid_ && (due(config_.eval.every) || last)) validate();
    if (options_.sample && data_.tokenizer && config_.sample.every > 0 &&
        (due(config_.sample.every) || last))
      sample();
  }

  void write_trace() {
    const auto ranks = gather_timelines(group(), timeline_->intervals());
    std::string where = str("are in ", options_.trace);
    // A picture that is lost is no reason to lose the run as well.
    try {
      if (leads()) write_file_atomic(options_.trace, chrome_trace(ranks));
    } catch (const std::exception& e) {
      where = str("are lost: ", e.what());
    }
    const TimelineTimes t = timeline_times(ranks[0], typical_step(ranks[0]));
    line_.message(str("timelines of steps ", options_.trace_first, " to ", state_.step, " ", where,
                      "; a step took ", t.step * 1e3, " ms, exchanges ", t.exchange * 1e3,
                      " ms, of which exposed ", t.exposed * 1e3, " ms"));
    step_.watch(nullptr);
    timeline_.reset();
  }

  void record(const TrainStep::Result& r, double lr, bool last) {
    if (!leads()) return;
    ++steps_since_record_;
    const bool logs = due(config_.log.every) || last || !r.finite;
    const bool prints = due(config_.log.print_every) || last || !r.finite;
    if (!logs && !prints && !line_.terminal()) return;
    const double now = now_seconds(), seconds = now - last_record_;
    StepRecord s;
    s.step = state_.step;
    s.total_steps = total_steps_;
    s.tokens = state_.tokens;
    s.loss = r.loss;
    s.loss_avg = state_.loss_avg_weight > 0 ? state_.loss_avg / state_.loss_avg_weight : r.loss;
    s.valid_loss = state_.last_valid_loss;
    s.grad_norm = r.grad_norm;
    s.lr = lr;
    s.finite = r.finite;
    const auto steps = static_cast<double>(steps_since_record_);
    s.tokens_per_s = steps * static_cast<double>(config_.tokens_per_step()) / seconds;
    s.mfu = steps * step_.flops_per_step() / seconds / (peak_tflops_ * 1e12);
    s.elapsed_s = now - started_;
    s.memory_bytes = resident_memory();
    // The time to come is judged by a slow average.
    const double per_step = seconds / steps;
    step_seconds_ = step_seconds_ > 0 ? 0.9 * step_seconds_ + 0.1 * per_step : per_step;
    s.eta_s = step_seconds_ * static_cast<double>(total_steps_ - state_.step);
    if (logs) log_->step(s);
    if (logs && events_) events_->step(s, config_.optimizer.weight_decay);
    line_.show(s, prints);
    last_record_ = now;
    steps_since_record_ = 0;
  }

  // Rates and the time to come are those of training: these three move the clock on by what they
  // take themselves.
  void validate() {
    const double begin = now_seconds();
    // Batch i is the work of rank i mod ranks; losses are added in the order of batches, so that
    // their mean does not depend on the number of ranks.
    step_.gather();
    const int64_t ranks = config_.ranks, rank = comm_ == nullptr ? 0 : comm_->rank();
    double sum = 0;
    for (int64_t first = 0; first < valid_->batches(); first += ranks) {
      double mine = 0;
      if (first + rank < valid_->batches()) {
        valid_->fill(first + rank, step_.eval_tokens(), step_.eval_targets());
        mine = step_.evaluate();
      }
      valid_losses_.assign(static_cast<size_t>(ranks), mine);
      if (comm_ != nullptr) group()->all_gather(&mine, sizeof mine, valid_losses_.data());
      for (const double loss : valid_losses_) sum += loss;  // 0 where there was no batch
    }
    const double loss = sum / static_cast<double>(valid_->batches());
    if (log_) log_->valid(state_.step, loss);
    if (events_) events_->valid(state_.step, loss);
    if (std::isfinite(loss)) {
      state_.last_valid_loss = loss;
      if (state_.best_valid_step < 0 || loss < state_.best_valid_loss) {
        state_.best_valid_loss = loss;
        state_.best_valid_step = state_.step;
      }
    }
    line_.message(
        str("step ", state_.step, ": validation loss ", loss, ", perplexity ", std::exp(loss)));
    last_record_ += now_seconds() - begin;
  }

  void sample() {
    const double begin = now_seconds();
    step_.download();
    on_rank_0([&] { draw_sample(); });
    last_record_ += now_seconds() - begin;
  }

  void draw_sample() {
    const std::string text =
        options_.sample({step_.model(), step_.values(), *data_.tokenizer, config_.sample.prompt,
                         config_.sample.tokens, config_.sample.temperature, config_.sample.top_p,
                         static_cast<uint64_t>(config_.train.seed)});
    log_->sample(state_.step, text);
    if (events_) events_->sample(state_.step, text);
    line_.message(str("step ", state_.step, ", sample: ", text));
  }

  void save() {
    const double begin = now_seconds();
    result_.last_checkpoint = checkpoints_.save(dir_, state_, data_.blob);
    on_rank_0([&] {
      prune_checkpoints(dir_, config_.checkpoint.keep_last, config_.checkpoint.keep_every);
    });
    last_record_ += now_seconds() - begin;
  }

  [[noreturn]] void give_up() {
    log_->end(state_.step, "non-finite");
    // Weights are known to be good if a later step computed finite numbers with them. Those saved
    // after the last finite step may be what exploded.
    const int64_t last_finite = state_.step - state_.nonfinite_in_a_row;
    std::string good = "none is known to be good", newer;
    for (const auto& file : list_checkpoints(dir_)) {
      if (file.step < last_finite)
        good = file.path;
      else
        newer += str(newer.empty() ? "; newer ones that may be broken: " : ", ", file.path);
    }
    if (!newer.empty()) newer += " (--resume takes the newest, so remove them first)";
    throw NonFiniteError(str("training ", config_.name, ": loss or gradients were not finite in ",
                             state_.nonfinite_in_a_row, " steps in a row, the last one being step ",
                             state_.step, "; last good checkpoint: ", good, newer,
                             ". Lower optimizer.lr or train.clip, or lengthen optimizer.warmup"));
  }

  const TrainConfig& config_;
  const TrainerOptions& options_;
  Communicator* comm_;
  StatusLine line_;
  TrainData data_;
  Schedule schedule_;
  int64_t total_steps_;
  TrainStep step_;
  CheckpointStore checkpoints_;
  std::string dir_;
  std::optional<RunLock> lock_;
  std::optional<ValidationSet> valid_;
  std::string valid_hash_;
  std::optional<JsonLog> log_;
  std::optional<EventLog> events_;
  TrainerState state_;
  RunResult result_;
  bool resuming_ = false;
  double peak_tflops_ = 1, started_ = 0, last_record_ = 0, step_seconds_ = 0;
  int64_t steps_since_record_ = 0;
  std::optional<Timeline> timeline_;
  const StopSignals* stop_ = nullptr;
  bool stop_agreed_ = false;
  std::vector<double> valid_losses_;
};

}  // namespace

TrainStepOptions step_options(const TrainConfig& config, Device device, Communicator* comm) {
  TrainStepOptions o;
  o.batch = config.train.batch;
  o.tokens = config.train.context;
  o.micro_batches = config.train.micro_batches;
  o.grad_checkpointing = config.grad_checkpointing();
  o.recompute_blocks = config.train.recompute_blocks;
  o.l2wrap = config.train.l2wrap;
  o.loss_chunk_tokens = config.train.loss_chunk_tokens;
  o.wkv = config.wkv();
  o.eval = config.eval.every > 0 && !config.data.valid.empty();
  o.optimizer = {.beta1 = config.optimizer.beta1,
                 .beta2 = config.optimizer.beta2,
                 .eps = config.optimizer.eps,
                 .weight_decay = config.optimizer.weight_decay,
                 .clip = config.train.clip};
  o.device = device;
  o.dtype = config.dtype(device);
  o.measure_gemms = config.kernels.gemm == "measured";
  o.launch_graphs = config.kernels.launch_graphs;
  o.lanes = static_cast<int>(config.kernels.lanes);
  o.comm = comm;
  o.planned_ranks = static_cast<int>(config.ranks);
  o.zero = static_cast<ZeroStage>(config.dist.zero);
  o.overlap = config.dist.overlap;
  o.copy_engines = config.dist.copy_engines;
  o.collects = config.dist.checkpoint == "gathered" || config.sample.every > 0;
  o.parcel_elements = config.dist.parcel;
  o.exchange = config.dist.exchange == "bf16" ? DType::kBF16 : DType::kF32;
  return o;
}

InitOptions init_options(const TrainConfig& config) {
  return {.seed = static_cast<uint64_t>(config.train.seed), .lr = config.optimizer.lr};
}

double measure_peak_tflops(Context& ctx) {
  // The H100's and H200's dense bf16 peak by their data sheet, which published figures refer to.
  if (ctx.device() == Device::kCuda) return 989;
  constexpr int64_t kN = 1024;
  std::vector<float> a(kN * kN, 0.5f), b(kN * kN, 0.25f), c(kN * kN);
  double best = 1e30;
  for (int i = 0; i < 5; ++i) {
    const double start = now_seconds();
    gemm_nt(ctx, kN, kN, kN, a.data(), b.data(), c.data(), Accum::kWrite);
    best = std::min(best, now_seconds() - start);
  }
  return 2.0 * kN * kN * kN / best / 1e12;
}

void require_same_start(HostGroup* group, const TrainConfig& config,
                        const TrainerOptions& options) {
  if (group == nullptr) return;
  require_same(*group, "the build (--version)", code_version());
  require_same(*group, "the device (--device)", std::string(device_name(options.device)));
  require_same(*group, "the configuration (--print-config shows it)", config_json(config));
  require_same(*group, "the run folder (checkpoint.dir)", config.run_dir());
  require_same(*group, "the use of --resume", options.resume ? "yes" : "no");
  require_same(*group, "the file of --init", options.init_file);
  require_same(*group, "the file of --trace", options.trace);
  require_same(*group, "the range of --trace-steps",
               str(options.trace_first, ":", options.trace_last));
}

RunResult run_training(const TrainConfig& config, const TrainerOptions& options) {
  RWKV_ASSERT(config.ranks == (options.comm == nullptr ? 1 : options.comm->size()), config.ranks,
              " ranks");
  HostGroup* group = options.comm == nullptr ? nullptr : &options.comm->group();
  // Before anything that depends on it: ranks that differ would call other collectives.
  require_same_start(group, config, options);
  std::optional<Run> run;
  const TrainConfig fitting = with_recomputation(config, options.device, options.comm);
  agree(group, [&] { run.emplace(fitting, options); });
  RunResult result;
  abort_on_error(group, [&] { result = run->run(); });
  return result;
}

}  // namespace rwkv
