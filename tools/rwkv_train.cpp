// rwkv-train: trains a model from a config. See docs/training.md.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "inference/generate.h"
#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "tools/cli_common.h"
#include "trainer/comm/launch.h"
#include "trainer/dry_run.h"
#include "trainer/lr_range.h"
#include "trainer/rwkv_lm_preset.h"
#include "trainer/smoke.h"
#include "trainer/trainer.h"

namespace {

struct Flags {
  std::string config, preset, wkv, init, device, trace, trace_steps = "3:5";
  std::vector<std::string> settings;
  bool smoke = false, resume = false, dry_run = false, print_config = false, dump_plan = false;
  bool find_lr = false, quiet = false;
  int threads = 0, gpus = 1;
  rwkv::LrRangeOptions range;
};

void add_options(CLI::App& app, Flags& f) {
  app.add_option("--config", f.config, "config: a path, or the name of a preset such as pile169m");
  app.add_option(
         "--preset", f.preset,
         "rwkv-lm: take the reference trainer's settings (--micro_bsz 16 --ctx_len 512 ...)")
      ->check(CLI::IsMember({"rwkv-lm"}));
  app.allow_extras();  // those settings; anything else is refused in load()
  app.add_option("--set", f.settings, "key=value, overrides the config; may be repeated")
      ->allow_extra_args(false);
  app.add_flag("--resume", f.resume, "continue from the newest good checkpoint of the run folder");
  app.add_option(
      "--init", f.init,
      "start from the weights of this model file of any format, or run folder (its newest)");
  app.add_flag("--smoke", f.smoke,
               "2 epochs of 50 steps, batch 2, context 1024, timed; synthetic tokens without data");
  auto* find = app.add_flag("--find-lr", f.find_lr, "learning-rate range test instead of training");
  app.add_option("--lr-min", f.range.lr_min, "--find-lr: first rate")
      ->capture_default_str()
      ->needs(find);
  app.add_option("--lr-max", f.range.lr_max, "--find-lr: last rate")
      ->capture_default_str()
      ->needs(find);
  app.add_option("--lr-steps", f.range.steps, "--find-lr: steps")
      ->capture_default_str()
      ->needs(find);
  app.add_flag("--dry-run", f.dry_run, "print sizes, memory and plan summary, start nothing");
  app.add_flag("--print-config", f.print_config, "print every value with its origin");
  app.add_flag("--dump-plan", f.dump_plan, "print every step of the plan");
  app.add_option("--wkv", f.wkv, "WKV variant, as --set kernels.wkv7=NAME or kernels.wkv4=NAME");
  app.add_option("--device", f.device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--gpus", f.gpus, "start so many local ranks, one per GPU (see docs/multi-gpu.md)")
      ->check(CLI::Range(1, 64));
  rwkv::add_threads_flag(app, f.threads);
  app.add_option("--trace", f.trace,
                 "write when blocks, exchanges and updates of some steps ran on every rank to this "
                 "file, for chrome://tracing or Perfetto");
  app.add_option("--trace-steps", f.trace_steps, "FIRST:LAST, counted from 1")
      ->capture_default_str();
  app.add_flag("--quiet", f.quiet, "nothing on stdout but errors on stderr");
}

void set_trace_steps(const std::string& text, rwkv::TrainerOptions& o) {
  long long first = 0, last = 0;
  char rest = 0;
  RWKV_CHECK(std::sscanf(text.c_str(), "%lld:%lld%c", &first, &last, &rest) == 2 && first >= 1 &&
                 first <= last,
             ConfigError, "--trace-steps: found '", text, "', expected FIRST:LAST, such as 3:5");
  o.trace_first = first;
  o.trace_last = last;
}

std::string draw_sample(const rwkv::SampleRequest& r) {
  rwkv::Engine engine(r.model, r.values);
  rwkv::GenerateOptions o;
  o.sampling.temperature = r.temperature;
  o.sampling.top_p = r.top_p;
  o.sampling.seed = r.seed;
  o.max_tokens = r.tokens;
  const auto ids = rwkv::prompt_ids(r.tokenizer, r.prompt);
  return r.prompt + rwkv::generate(engine, &r.tokenizer, ids, o).text;
}

/// The config, from file or preset; what a preset says of --init, --resume and --device goes to
/// the flags.
rwkv::TrainConfig load(Flags& f, std::vector<std::string> extras) {
  if (f.preset.empty()) {
    RWKV_CHECK(extras.empty(), ConfigError, "the argument ", extras.front(),
               " was not expected; try --help");
    RWKV_CHECK(!f.config.empty() || !f.settings.empty(), ConfigError,
               "nothing says which model and what data: give --config PATH, or the name of a "
               "preset, such as --config quickstart; try --help");
    return rwkv::load_config(f.config, f.settings);
  }
  RWKV_CHECK(f.config.empty(), ConfigError, "--preset and --config exclude each other; override ",
             "single keys with --set");
  // --set micro_bsz=16 means the same as --micro_bsz 16: our own keys have a dot or are "model".
  const auto foreign = [](const std::string& s) {
    const std::string key = s.substr(0, s.find('='));
    return key != "model" && key.find('.') == std::string::npos;
  };
  for (const auto& s : f.settings)
    if (foreign(s)) extras.push_back("--" + s);
  std::erase_if(f.settings, foreign);
  const rwkv::RwkvLmPreset preset = rwkv::map_rwkv_lm(rwkv::parse_rwkv_lm_words(extras));
  if (!f.quiet) std::fputs(preset.report.c_str(), stdout);
  f.resume = f.resume || preset.resume;
  if (f.init.empty()) f.init = preset.init_file;
  RWKV_CHECK(f.device.empty() || preset.device.empty() || f.device == preset.device, ConfigError,
             "--device ", f.device, ": --accelerator says ", preset.device, "; give one of them");
  if (f.device.empty()) f.device = preset.device;
  rwkv::TrainConfig config =
      rwkv::parse_config(preset.config_json, "preset " + f.preset, f.settings);
  config.name = f.preset;
  return config;
}

/// A process that srun started beside others, and that knows no way to them, would train alone
/// where the user expects one run of all.
void tell_lone_processes(const rwkv::RankSession& ranks) {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (ranks.size() > 1 || tasks == nullptr || std::atoi(tasks) < 2) return;
  std::fprintf(stderr,
               "rwkv-train: note: srun started %s processes, but nothing says how they meet, so "
               "each is a run of its own; set MASTER_ADDR and MASTER_PORT, or use srun --mpi=pmix "
               "with an MPI built for it (docs/multi-gpu.md)\n",
               tasks);
}

/// What this process does, as one of the ranks of the session.
int run(Flags& f, const std::vector<std::string>& extras, rwkv::RankSession& ranks) {
  rwkv::use_threads(f.threads);
  // The model's architecture decides which of the two counts.
  if (!f.wkv.empty())
    for (const char* key : {"kernels.wkv7=", "kernels.wkv4="}) f.settings.push_back(key + f.wkv);
  if (ranks.rank() != 0) f.quiet = true;
  tell_lone_processes(ranks);
  const bool only_print = f.print_config || f.dry_run || f.dump_plan;
  rwkv::TrainConfig config;
  rwkv::TrainerOptions options;
  rwkv::agree(ranks.group(), [&] {
    config = load(f, extras);
    if (f.device == "cuda") {
      RWKV_CHECK(rwkv::backend::has_cuda(), DeviceError,
                 "--device cuda: this build has CPU kernels only; build with a CUDA toolkit (nvcc "
                 "on the PATH), or use --device cpu");
      options.device = rwkv::Device::kCuda;
    }
    RWKV_CHECK((ranks.size() == 1 && f.gpus == 1) || only_print || (!f.smoke && !f.find_lr),
               ConfigError, "--smoke and --find-lr are for one process; found ", ranks.size(),
               " ranks");
    RWKV_CHECK(f.gpus == 1 || f.device == "cuda" || only_print, ConfigError, "--gpus ", f.gpus,
               ": expected --device cuda; CPU ranks are started with mpirun");
    set_trace_steps(f.trace_steps, options);
  });
  options.resume = f.resume;
  options.init_file = f.init;
  options.quiet = f.quiet;
  options.trace = f.trace;
  options.sample = draw_sample;
  if (f.smoke) config = rwkv::smoke_config(config);

  config.ranks = std::max(f.gpus, ranks.size());
  // One that only prints would leave the others to wait for it.
  if (ranks.group() != nullptr)
    rwkv::require_same(*ranks.group(), "the use of --print-config, --dry-run or --dump-plan",
                       only_print ? "yes" : "no");
  if (only_print && ranks.rank() != 0) return 0;
  if (f.print_config) std::fputs(rwkv::print_config(config).c_str(), stdout);
  if (f.dry_run) std::fputs(rwkv::dry_run_report(config, options.device).c_str(), stdout);
  if (f.dump_plan) std::fputs(rwkv::dump_plan(config, options.device).c_str(), stdout);
  if (only_print) return 0;

  if (f.find_lr) {
    const auto r = rwkv::find_lr(config, options, f.range);
    if (r.stopped_early) {
      std::printf("too few steps to judge a learning rate by; nothing was written\n");
      return 0;
    }
    if (!r.fell)
      std::printf("the loss never fell: take more --lr-steps, a larger batch or other data\n");
    if (r.rose)
      std::printf("loss lowest at lr %.3g, falling fastest at %.3g: try optimizer.lr=%.2g\n",
                  r.lowest, r.steepest, r.suggestion);
    else
      std::printf(
          "the loss was lowest at the last lr, %.3g: no rate can be judged by that; let the "
          "test run to its end, or take a larger --lr-max\n",
          r.lowest);
    std::printf("%s %s\n", r.json_path.c_str(), r.picture_path.c_str());
    RWKV_CHECK(r.picture_problem.empty(), IoError, r.picture_problem);
    return 0;
  }
  if (f.smoke) {
    const auto r = rwkv::run_smoke(config, options);
    std::printf(
        "first epoch %.1f ms/step, second epoch %.1f ms/step (mean of %lld steps), "
        "%.0f tokens/s, model-flops utilisation %.1f%%, loss %.4f -> %.4f\n",
        r.first_epoch_ms, r.second_epoch_ms, static_cast<long long>(r.steps_per_epoch),
        r.tokens_per_s, 100 * r.mfu, r.first_loss, r.last_loss);
    return 0;
  }
  rwkv::require_same_start(ranks.group(), config, options);  // connecting depends on it
  options.comm = ranks.connect(options.device, config.dist.copy_engines);
  rwkv::run_training(config, options);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Trains a model from a config", "rwkv-train"};
  Flags flags;
  add_options(app, flags);
  return rwkv::run_program(app, argc, argv, [&] {
    const bool only_print = flags.print_config || flags.dry_run || flags.dump_plan;
    return rwkv::run_ranks(only_print ? 1 : flags.gpus, app.get_name(),
                           [&](rwkv::RankSession& r) { return run(flags, app.remaining(), r); });
  });
}
