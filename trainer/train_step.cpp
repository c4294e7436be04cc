#include "trainer/train_step.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "kernels/core/memory.h"

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
  g.dtype = o.dtype;
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
  const auto elements = static_cast<size_t>(model_->params().flat_elements());
  const size_t flat = elements * sizeof(float);
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
  if (options_.dtype == DType::kBF16)
    items.push_back({"bf16 copies of the matrices", elements * sizeof(BF16)});
  if (options_.device == Device::kCuda) {
    items.push_back({"workspace of cuBLASLt", backend::kGemmWorkspaceBytes});
    items.push_back({"kernels and libraries", kDeviceOverheadBytes});
  }
  std::ranges::stable_sort(items, std::greater<>{}, &MemoryItem::bytes);
  return items;
}

double TrainStep::flops_per_step() const {
  return plan_.model_flops() * static_cast<double>(options_.micro_batches);
}

void TrainStep::allocate() {
  const ParamRegistry& params = model_->params();
  ctx_ = std::make_unique<Context>(options_.device);
  const bool cuda = options_.device == Device::kCuda;
  // On CUDA these are the host copies that initial values, checkpoints and samples go through.
  values_ = ParamStore(Device::kCpu, params, "parameters");
  optimizer_ =
      std::make_unique<AdamW>(Device::kCpu, params, options_.optimizer, plan_.reached_params());
  if (cuda)
    device_ = std::make_unique<DeviceParams>(*ctx_, params, options_.dtype, options_.optimizer,
                                             plan_.reached_params());
  else
    grads_ = ParamStore(Device::kCpu, params, "gradients");
  const auto values = cuda ? device_->values() : values_.views();
  plan_.bind(*ctx_, values, cuda ? device_->grads() : grads_.views());
  bind_ids(plan_, host_ids_, tokens_, targets_);
  if (eval_plan_) {
    eval_plan_->bind(*ctx_, values, {});
    bind_ids(*eval_plan_, host_eval_ids_, eval_tokens_, eval_targets_);
  }
}

void TrainStep::bind_ids(Plan& plan, std::vector<int32_t>& host, std::span<int32_t>& tokens,
                         std::span<int32_t>& targets) {
  if (options_.device == Device::kCpu) {
    tokens = ids(plan.input("tokens"));
    targets = ids(plan.input("targets"));
    return;
  }
  const auto n = static_cast<size_t>(options_.batch * options_.tokens);
  host.resize(2 * n);
  tokens = std::span(host).first(n);
  targets = std::span(host).last(n);
}

void TrainStep::send_ids(Plan& plan, const std::span<int32_t>& tokens,
                         const std::span<int32_t>& targets) {
  if (options_.device == Device::kCpu) return;
  const TensorView x = plan.input("tokens"), y = plan.input("targets");
  copy(*ctx_, x, TensorView(tokens.data(), x.spec));
  copy(*ctx_, y, TensorView(targets.data(), y.spec));
}

double TrainStep::read_loss(Plan& plan) {
  float loss = 0;
  copy(*ctx_, TensorView(&loss, TensorSpec{}), plan.output("loss"));
  return loss;
}

void TrainStep::upload() {
  if (device_) device_->upload(*ctx_, values_, optimizer_->m(), optimizer_->v());
}

void TrainStep::download() {
  if (device_) device_->download(*ctx_, values_, optimizer_->m(), optimizer_->v());
}

double TrainStep::accumulate(int64_t i) {
  RWKV_ASSERT(ctx_ != nullptr, "TrainStep::accumulate before allocate");
  if (i == 0) loss_sum_ = 0;
  send_ids(plan_, tokens_, targets_);
  plan_.forward(*ctx_);
  plan_.backward(*ctx_, 1.0f / static_cast<float>(options_.micro_batches), i == 0);
  const double loss = read_loss(plan_);
  loss_sum_ += loss;
  return loss;
}

TrainStep::Result TrainStep::finish(double lr) {
  Result s;
  s.loss = loss_sum_ / static_cast<double>(options_.micro_batches);
  if (device_) {
    if (!std::isfinite(s.loss)) {
      // The device looks at the norm alone, which can be finite: bad ids give a NaN loss, no
      // gradient. The norm of a step that is left out is not computed.
      s.grad_norm = std::numeric_limits<double>::quiet_NaN();
      s.finite = false;
      return s;
    }
    const int64_t update = optimizer_->updates() + 1;
    device_->update(*ctx_, lr, update);
    s.grad_norm = device_->read_norm(*ctx_);
    s.finite = std::isfinite(s.grad_norm);
    if (s.finite) optimizer_->set_updates(update);
    return s;
  }
  s.grad_norm = optimizer_->grad_norm(grads_);
  s.finite = std::isfinite(s.loss) && std::isfinite(s.grad_norm);
  if (s.finite) optimizer_->step(values_, grads_, lr, s.grad_norm);
  return s;
}

double TrainStep::evaluate() {
  RWKV_ASSERT(eval_plan_ && ctx_ != nullptr, "TrainStep::evaluate without an eval plan");
  send_ids(*eval_plan_, eval_tokens_, eval_targets_);
  eval_plan_->forward(*ctx_);
  return read_loss(*eval_plan_);
}

}  // namespace rwkv
