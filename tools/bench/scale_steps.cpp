#include "tools/bench/scale_steps.h"

#include <algorithm>

#include "kernels/core/backend.h"
#include "kernels/core/rng.h"
#include "model/init.h"
#include "trainer/gemm_choices.h"
#include "trainer/memory.h"
#include "trainer/recompute.h"

namespace rwkv::bench {
namespace {

size_t free_memory(Device device) {
  return device == Device::kCuda ? backend::cuda_memory().free : available_memory();
}

/// Rank 0 measures for all.
void prepare(TrainStep& step, HostGroup* group, std::string& algorithms) {
  const bool leads = group == nullptr || group->rank() == 0;
  const auto quiet = [](const std::string&) {};
  agree(group, [&] {
    if (leads) algorithms = prepare_step(step, algorithms, quiet);
  });
  if (group == nullptr) return;
  algorithms = group->broadcast(algorithms);
  agree(group, [&] {
    if (!leads) prepare_step(step, algorithms, quiet);
  });
}

}  // namespace

double step_flops(const ModelConfig& model, int64_t tokens) {
  const auto built = make_model(model);
  double elements = 0;
  for (const ParamSpec& p : built->params().specs())
    if (p.matrix && p.name != "emb.weight") elements += static_cast<double>(p.spec.numel());
  const auto wkv = static_cast<double>(27 * 64 * model.n_embd * model.n_layer);
  return static_cast<double>(tokens) * (6 * elements + wkv);
}

StepRun run_steps(const StepWish& wish, std::string& algorithms) {
  StepRun run;
  TrainStepOptions options = wish.options;
  options.host_copies = false;
  // Whoever is alone agrees with nobody on the way, but all say whether they fit.
  HostGroup* group = options.comm == nullptr ? nullptr : wish.group;
  run.free_bytes = free_memory(options.device);
  if (wish.group != nullptr) {
    std::vector<size_t> free(static_cast<size_t>(wish.group->size()));
    wish.group->all_gather(&run.free_bytes, sizeof run.free_bytes, free.data());
    run.free_bytes = std::ranges::min(free);
  }
  if (wish.choose_recompute) {
    const int64_t n = fewest_recomputed_blocks(wish.model, options, run.free_bytes);
    run.fits = n >= 0;
    options.recompute_blocks = std::max<int64_t>(n, 0);
    options.grad_checkpointing = n > 0 ? GradCheckpointing::kBlock : GradCheckpointing::kNone;
  }
  TrainStep step(wish.model, options);
  run.planned_bytes = total_bytes(step.memory());
  if (options.grad_checkpointing == GradCheckpointing::kBlock)
    run.recompute_blocks =
        options.recompute_blocks > 0 ? options.recompute_blocks : wish.model.n_layer;
  run.flops = step_flops(wish.model, options.batch * options.tokens);
  run.fits = run.fits && run.planned_bytes <= run.free_bytes;
  if (!run.fits) return run;
  agree(group, [&] { step.allocate(); });
  std::vector<float> values((size_t{1} << 20) - 3);  // rows of matrices should differ
  init_uniform(values, -0.05, 0.05, 1, "values of a benchmark");
  step.fill(values);
  prepare(step, group, algorithms);
  const Rng rng(1, hash_name("bench tokens"));
  uint64_t counter =
      options.comm == nullptr ? 0 : static_cast<uint64_t>(options.comm->rank()) << 32;
  // Made before, and copied as from a loader.
  std::vector<std::vector<int32_t>> batches(4);
  for (auto& ids : batches)
    for (int64_t i = 0; i < 2 * options.batch * options.tokens; ++i)
      ids.push_back(
          static_cast<int32_t>(rng.below(counter++, static_cast<uint64_t>(wish.model.vocab_size))));
  size_t turn = 0;
  const auto one = [&] {
    const double start = now_seconds();
    const auto& ids = batches[turn++ % batches.size()];
    std::copy_n(ids.begin(), step.tokens().size(), step.tokens().begin());
    std::copy_n(ids.rbegin(), step.targets().size(), step.targets().begin());
    step.accumulate(0);
    const TrainStep::Result r = step.finish(1e-6);
    RWKV_CHECK(r.finite, NonFiniteError, "the step's loss is ", r.loss, ", its gradient norm ",
               r.grad_norm);
    return now_seconds() - start;
  };
  std::vector<double> seconds;
  RankTimeline mine;
  abort_on_error(group, [&] {
    for (int i = 0; i < 3; ++i) one();
    for (int i = 0; i < wish.repeats; ++i) seconds.push_back(one());
    const size_t left = free_memory(options.device);
    run.used_bytes = run.free_bytes > left ? run.free_bytes - left : 0;
    if (wish.traced == 0) return;
    Timeline timeline(step.context());
    step.watch(&timeline);
    for (int i = -1; i < wish.traced; ++i) one();
    mine = timeline.intervals();
    step.watch(nullptr);
  });
  run.time = summarize(std::move(seconds));
  if (wish.traced > 0) run.timelines = gather_timelines(group, mine);
  return run;
}

}  // namespace rwkv::bench
