#include "trainer/smoke.h"

#include <algorithm>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/trace.h"
#include "trainer/checkpoint.h"
#include "trainer/data_source.h"
#include "trainer/gemm_choices.h"
#include "trainer/memory.h"
#include "trainer/metrics.h"
#include "trainer/recompute.h"

namespace rwkv {

TrainConfig smoke_config(TrainConfig c) {
  const auto unless_set = [&](const char* key, auto& field, auto value) {
    if (c.set_by_user(key)) return;
    field = value;
    c.origin[key] = "--smoke";
  };
  unless_set("train.batch", c.train.batch, 2);
  unless_set("train.context", c.train.context, 1024);
  unless_set("train.micro_batches", c.train.micro_batches, 1);
  unless_set("train.steps", c.train.steps, 100);
  unless_set("train.exit_tokens", c.train.exit_tokens, 0);
  unless_set("train.epochs", c.train.epochs, 0);
  unless_set("eval.every", c.eval.every, 0);
  if (!c.set_by_user("data.train") && (c.data.train.empty() || !train_data_exists(c.data.train))) {
    c.data.train = "synthetic";
    c.data.magic_prime = 0;  // that of the absent data
    c.origin["data.train"] = "--smoke (no such data here)";
  }
  return c;
}

SmokeResult run_smoke(const TrainConfig& config, const TrainerOptions& options,
                      std::span<const float> initial) {
  RWKV_CHECK(config.train.steps >= 2, ConfigError, "smoke run: train.steps is ", config.train.steps,
             ", expected at least 2 (two epochs)");
  StatusLine line(options.quiet);
  TrainStep step(config.model,
                 step_options(with_recomputation(config, options.device, nullptr), options.device));
  require_memory(step, config.limits.memory_mib);
  const TrainData data = open_train_data(config.data.train, config);
  const Schedule schedule = config.schedule(data.source->size());
  step.allocate();
  if (initial.empty()) {
    step.model().init_params(step.values(), init_options(config));
  } else {
    const std::span<float> values = step.values().flat();
    RWKV_CHECK(initial.size() == values.size(), ConfigError, "smoke run: found ", initial.size(),
               " initial values, expected ", values.size(), " (padding included)");
    std::ranges::copy(initial, values.begin());
  }
  step.upload();
  const std::string algorithms =
      prepare_step(step, "", [&](const std::string& text) { line.message(text); });
  const double peak = config.limits.peak_tflops > 0 ? config.limits.peak_tflops
                                                    : measure_peak_tflops(step.context());
  SmokeResult result;
  result.steps_per_epoch = config.train.steps / 2;
  result.data = data.source->describe();
  line.message(str("smoke run of ", config.name, " on ", result.data, ": 2 epochs of ",
                   result.steps_per_epoch, " steps of ", config.tokens_per_step(), " tokens, ",
                   num_threads(), " threads, ", step.wkv_name()));
  const auto loader = make_loader(data, config, 0);
  double seconds[2] = {0, 0};
  std::vector<double> steps;  // of the epoch
  int64_t n = 0;
  for (int epoch = 0; epoch < 2; ++epoch) {
    const double epoch_start = now_seconds();
    double step_start = epoch_start;
    steps.clear();
    for (int64_t i = 0; i < result.steps_per_epoch; ++i, ++n) {
      for (int64_t m = 0; m < config.train.micro_batches; ++m) {
        const Batch& batch = loader->next();
        std::copy(batch.x.begin(), batch.x.end(), step.tokens().begin());
        std::copy(batch.y.begin(), batch.y.end(), step.targets().begin());
        step.accumulate(m);
      }
      const TrainStep::Result r = step.finish(schedule.at(n));
      RWKV_CHECK(r.finite, NonFiniteError, "smoke run: step ", n + 1, " has loss ", r.loss,
                 " and gradient norm ", r.grad_norm);
      const double now = now_seconds();
      steps.push_back(1e3 * (now - step_start));
      step_start = now;
      if (n == 0) result.first_loss = r.loss;
      result.last_loss = r.loss;
      if ((i + 1) % 10 == 0 || i + 1 == result.steps_per_epoch)
        line.message(str(
            "epoch ", epoch + 1, " step ", i + 1, "/", result.steps_per_epoch, "  loss ", r.loss,
            "  ", 1e3 * (now_seconds() - epoch_start) / static_cast<double>(i + 1), " ms/step"));
    }
    seconds[epoch] = (now_seconds() - epoch_start) / static_cast<double>(result.steps_per_epoch);
  }
  result.first_epoch_ms = 1e3 * seconds[0];
  result.second_epoch_ms = 1e3 * seconds[1];
  std::ranges::sort(steps);
  result.minimum_ms = steps.front();
  result.median_ms = 0.5 * (steps[(steps.size() - 1) / 2] + steps[steps.size() / 2]);
  result.maximum_ms = steps.back();
  result.tokens_per_s = static_cast<double>(config.tokens_per_step()) / seconds[1];
  result.mfu = step.flops_per_step() / seconds[1] / (peak * 1e12);
  if (config.set_by_user("checkpoint.dir")) {
    const RunLock lock(config.run_dir());
    TrainerState state;
    state.step = n;
    state.updates = step.optimizer().updates();
    state.samples = static_cast<int64_t>(loader->position());
    state.tokens = n * config.tokens_per_step();
    state.seed = static_cast<uint64_t>(config.train.seed);
    state.sampler = config.data.sampler;
    state.data_hash = data.hash;
    state.data_tokens = data.source->size();
    state.wkv = step.wkv_name();
    state.code_version = code_version();
    state.gemm_algorithms = algorithms;
    const std::string path = checkpoint_path(config.run_dir(), n);
    step.download();
    write_checkpoint(path,
                     {config.model, step.model().params(), step.values(), step.optimizer().m(),
                      step.optimizer().v()},
                     state, config_json(config), data.blob);
    line.message("checkpoint " + path + " written");
  }
  return result;
}

}  // namespace rwkv
