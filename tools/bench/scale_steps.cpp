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

StepRunner::StepRunner(const StepWish& wish)
    : wish_(wish), group_(wish.options.comm == nullptr ? nullptr : wish.group) {
  // Whoever is alone agrees with nobody on the way, but all say whether they fit.
  TrainStepOptions& options = wish_.options;
  options.host_copies = false;
  run_.free_bytes = free_memory(options.device);
  if (wish.group != nullptr) {
    std::vector<size_t> free(static_cast<size_t>(wish.group->size()));
    wish.group->all_gather(&run_.free_bytes, sizeof run_.free_bytes, free.data());
    run_.free_bytes = std::ranges::min(free);
  }
  if (wish.choose_recompute) {
    const int64_t n = fewest_recomputed_blocks(wish.model, options, run_.free_bytes);
    run_.fits = n >= 0;
    options.recompute_blocks = std::max<int64_t>(n, 0);
    options.grad_checkpointing = n > 0 ? GradCheckpointing::kBlock : GradCheckpointing::kNone;
  }
  step_ = std::make_unique<TrainStep>(wish.model, options);
  run_.planned_bytes = total_bytes(step_->memory());
  if (options.grad_checkpointing == GradCheckpointing::kBlock)
    run_.recompute_blocks =
        options.recompute_blocks > 0 ? options.recompute_blocks : wish.model.n_layer;
  run_.flops = step_flops(wish.model, options.batch * options.tokens);
  run_.fits = run_.fits && run_.planned_bytes <= run_.free_bytes;
}

void StepRunner::start(std::string& algorithms) {
  agree(group_, [&] { step_->allocate(); });
  std::vector<float> values((size_t{1} << 20) - 3);  // rows of matrices should differ
  init_uniform(values, -0.05, 0.05, 1, "values of a benchmark");
  step_->fill(values);
  prepare(*step_, group_, algorithms);
  const TrainStepOptions& options = wish_.options;
  const Rng rng(1, hash_name("bench tokens"));
  uint64_t counter =
      options.comm == nullptr ? 0 : static_cast<uint64_t>(options.comm->rank()) << 32;
  // Made before, and copied as from a loader.
  batches_.resize(4);
  for (auto& ids : batches_)
    for (int64_t i = 0; i < 2 * options.batch * options.tokens; ++i)
      ids.push_back(static_cast<int32_t>(
          rng.below(counter++, static_cast<uint64_t>(wish_.model.vocab_size))));
  abort_on_error(group_, [&] {
    for (int i = 0; i < 3; ++i) one();
  });
  const size_t left = free_memory(options.device);
  run_.used_bytes = run_.free_bytes > left ? run_.free_bytes - left : 0;
}

double StepRunner::one() {
  const double start = now_seconds();
  const auto& ids = batches_[turn_++ % batches_.size()];
  std::copy_n(ids.begin(), step_->tokens().size(), step_->tokens().begin());
  std::copy_n(ids.rbegin(), step_->targets().size(), step_->targets().begin());
  step_->accumulate(0);
  const TrainStep::Result r = step_->finish(1e-6);
  RWKV_CHECK(r.finite, NonFiniteError, "the step's loss is ", r.loss, ", its gradient norm ",
             r.grad_norm);
  return now_seconds() - start;
}

void StepRunner::measure(int steps) {
  abort_on_error(group_, [&] {
    one();  // begins while kernels or gathers of whoever went before may still run
    for (int i = 0; i < steps; ++i) seconds_.push_back(one());
  });
}

StepRun StepRunner::finish() {
  run_.time = summarize(seconds_);
  if (wish_.traced == 0) return run_;
  RankTimeline mine;
  abort_on_error(group_, [&] {
    Timeline timeline(step_->context());
    step_->watch(&timeline);
    for (int i = -1; i < wish_.traced; ++i) one();
    mine = timeline.intervals();
    step_->watch(nullptr);
  });
  run_.timelines = gather_timelines(group_, mine);
  return run_;
}

}  // namespace rwkv::bench
