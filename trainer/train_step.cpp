#include "trainer/train_step.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

GraphOptions graph_options(const TrainStepOptions& o) {
  GraphOptions g;
  g.batch = o.batch;
  g.tokens = o.tokens;
  g.mode = GraphOptions::Mode::kLoss;
  g.l2wrap = o.l2wrap;
  g.loss_chunk_tokens = o.loss_chunk_tokens;
  g.wkv = o.wkv;
  g.device = o.device;
  return g;
}

std::span<int32_t> ids(const TensorView& v) {
  return {v.as<int32_t>(), static_cast<size_t>(v.numel())};
}

}  // namespace

TrainStep::TrainStep(const ModelConfig& config, const TrainStepOptions& options)
    : options_(options),
      model_(make_model(config)),
      wkv_name_(model_->wkv_name(graph_options(options))),
      graph_(std::make_unique<Graph>(model_->build(graph_options(options)))),
      plan_(build_plan(true)) {
  if (options.eval) eval_plan_ = build_plan(false);
}

Plan TrainStep::build_plan(bool training) const {
  PlanOptions o;
  o.training = training;
  o.grad_checkpointing = options_.grad_checkpointing;
  return Plan::build(*graph_, o);
}

std::vector<MemoryItem> TrainStep::memory() const {
  const size_t flat = static_cast<size_t>(model_->params().flat_elements()) * sizeof(float);
  std::vector<MemoryItem> items = {
      {"parameters", flat},
      {"gradients", flat},
      {"optimizer moments", 2 * flat},
      {"activations", plan_.activation_bytes()},
      {"workspace",
       std::max(plan_.workspace_bytes(), eval_plan_ ? eval_plan_->workspace_bytes() : size_t{0})},
  };
  if (eval_plan_)
    items.push_back({"activations of the validation", eval_plan_->activation_bytes()});
  std::ranges::stable_sort(items, std::greater<>{}, &MemoryItem::bytes);
  return items;
}

double TrainStep::flops_per_step() const {
  return plan_.model_flops() * static_cast<double>(options_.micro_batches);
}

void TrainStep::allocate() {
  const ParamRegistry& params = model_->params();
  ctx_ = std::make_unique<Context>(options_.device);
  values_ = ParamStore(options_.device, params, "parameters");
  grads_ = ParamStore(options_.device, params, "gradients");
  optimizer_ =
      std::make_unique<AdamW>(options_.device, params, options_.optimizer, plan_.reached_params());
  plan_.bind(*ctx_, values_.views(), grads_.views());
  tokens_ = ids(plan_.input("tokens"));
  targets_ = ids(plan_.input("targets"));
  if (eval_plan_) {
    eval_plan_->bind(*ctx_, values_.views(), {});
    eval_tokens_ = ids(eval_plan_->input("tokens"));
    eval_targets_ = ids(eval_plan_->input("targets"));
  }
}

double TrainStep::accumulate(int64_t i) {
  RWKV_ASSERT(ctx_ != nullptr, "TrainStep::accumulate before allocate");
  if (i == 0) loss_sum_ = 0;
  plan_.forward(*ctx_);
  const double loss = *plan_.output("loss").f32();
  loss_sum_ += loss;
  plan_.backward(*ctx_, 1.0f / static_cast<float>(options_.micro_batches), i == 0);
  return loss;
}

TrainStep::Result TrainStep::finish(double lr) {
  Result s;
  s.loss = loss_sum_ / static_cast<double>(options_.micro_batches);
  s.grad_norm = optimizer_->grad_norm(grads_);
  s.finite = std::isfinite(s.loss) && std::isfinite(s.grad_norm);
  if (s.finite) optimizer_->step(values_, grads_, lr, s.grad_norm);
  return s;
}

double TrainStep::evaluate() {
  RWKV_ASSERT(eval_plan_ && ctx_ != nullptr, "TrainStep::evaluate without an eval plan");
  eval_plan_->forward(*ctx_);
  return *eval_plan_->output("loss").f32();
}

}  // namespace rwkv
