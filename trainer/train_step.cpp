#include "trainer/train_step.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "kernels/core/gemm.h"
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

/// Lanes pay where single kernels leave the GPU idle: see docs/cuda.md for the measurements.
constexpr int kLanes = 4;
constexpr int64_t kMostTokensForLanes = 65536;
constexpr int32_t kLingerSteps = 8;

TrainStepOptions with_lanes(TrainStepOptions o) {
  if (o.device == Device::kCpu)
    o.lanes = 1;
  else if (o.lanes == 0)
    o.lanes = o.batch * o.tokens <= kMostTokensForLanes ? kLanes : 1;
  return o;
}

/// One half of a slot, or a plan's input.
std::span<int32_t> ids(const TensorView& v, int64_t begin, int64_t count) {
  return {v.as<int32_t>() + begin, static_cast<size_t>(count)};
}

}  // namespace

TrainStep::TrainStep(const ModelConfig& config, const TrainStepOptions& options)
    : given_(options),
      options_(with_lanes(options)),
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
  o.recompute_blocks = options_.recompute_blocks;
  if (training && options_.lanes > 1) o.linger_steps = kLingerSteps;
  return Plan::build(*graph_, o);
}

std::vector<MemoryItem> TrainStep::memory() const {
  const auto elements = static_cast<size_t>(model_->params().flat_elements());
  const size_t flat = elements * sizeof(float);
  const size_t workspace =
      std::max(plan_.workspace_bytes(), eval_plan_ ? eval_plan_->workspace_bytes() : size_t{0});
  std::vector<MemoryItem> items;
  if (ranks() > 1) {
    items = ShardedParams::memory(ShardLayout(model_->params(), ranks(), options_.parcel_elements),
                                  shard_options());
    if (options_.device == Device::kCpu && options_.host_copies)
      for (const MemoryItem& item : host_memory()) items.push_back(item);
  } else {
    items = {{"parameters", flat}, {"gradients", flat}, {"optimizer moments", 2 * flat}};
  }
  items.push_back({"activations", plan_.activation_bytes()});
  items.push_back({"workspace", workspace});
  if (eval_plan_)
    items.push_back({"activations of the validation", eval_plan_->activation_bytes()});
  if (options_.dtype == DType::kBF16 && ranks() == 1)
    items.push_back({"bf16 copies of the matrices", elements * sizeof(BF16)});
  if (options_.device == Device::kCuda) {
    items.push_back({"workspace of cuBLASLt",
                     static_cast<size_t>(options_.lanes) * backend::kGemmWorkspaceBytes});
    if (options_.lanes > 1)
      items.push_back(
          {"workspaces of more lanes", static_cast<size_t>(options_.lanes - 1) * workspace});
    items.push_back({"kernels and libraries", kDeviceOverheadBytes});
    if (ranks() > 1) items.push_back({"NCCL", kNcclBytes});
  }
  std::ranges::stable_sort(items, std::greater<>{}, &MemoryItem::bytes);
  return items;
}

size_t TrainStep::initial_bytes() const {
  // Shares are equal work, not equal sizes. A plan without the ranks is for the one that needs
  // most.
  const std::vector<InitTensor> all = model_->initial_values({});
  const int first = options_.comm == nullptr ? 0 : options_.comm->rank(),
            last = options_.comm == nullptr ? static_cast<int>(ranks()) - 1 : first;
  size_t bytes = 0;
  for (int r = first; r <= last; ++r)
    bytes = std::max(bytes,
                     fill_bytes(init_share(all, r, static_cast<int>(ranks())), model_->params()));
  return bytes;
}

std::vector<MemoryItem> TrainStep::host_memory() const {
  const auto elements = static_cast<size_t>(model_->params().flat_elements());
  std::vector<MemoryItem> items;
  if (!options_.host_copies) return items;
  const auto n = static_cast<size_t>(ranks());
  if (n == 1 || (leads() && options_.collects))
    items.push_back({"host copies of parameters and moments", 3 * elements * sizeof(float)});
  if (n > 1) {
    items.push_back({"initial values or a checkpoint's part of this rank",
                     std::max(initial_bytes(), (elements + n - 1) / n * sizeof(float))});
  }
  if (n == 1 && options_.dtype == DType::kBF16)
    items.push_back({"their bf16 form on its way to the GPU", elements * sizeof(BF16)});
  return items;
}

ShardOptions TrainStep::shard_options() const {
  return {.zero = options_.zero,
          .exchange = options_.exchange,
          .activations = options_.dtype,
          .overlap = options_.overlap,
          .accumulates = options_.micro_batches > 1,
          .parcel_elements = options_.parcel_elements,
          .copy_engines = uses_copy_engines(),
          .adds_on_host = options_.device == Device::kCpu && !uses_copy_engines(),
          .early_parcels = options_.early_parcels,
          .optimizer = options_.optimizer};
}

double TrainStep::flops_per_step() const {
  return plan_.model_flops() * static_cast<double>(options_.micro_batches);
}

void TrainStep::allocate() {
  RWKV_ASSERT(options_.comm != nullptr || ranks() == 1, "memory of ", ranks(),
              " ranks without them");
  const ParamRegistry& params = model_->params();
  // What was recorded belongs to the context that goes.
  first_graph_ = LaunchGraph();
  later_graph_ = LaunchGraph();
  last_graph_ = LaunchGraph();
  eval_graph_ = LaunchGraph();
  prepared_ = recorded_ = false;
  shards_.reset();
  device_.reset();
  ctx_ = std::make_unique<Context>(options_.device);
  const bool cuda = options_.device == Device::kCuda;
  // On CUDA, and of several ranks, these are the host copies that initial values, checkpoints and
  // samples go through.
  const bool keeps = leads() && keeps_on_host();
  const ParamRegistry& host = keeps ? params : nothing_;
  values_ = ParamStore(Device::kCpu, host, "parameters");
  optimizer_ = std::make_unique<AdamW>(Device::kCpu, host, options_.optimizer,
                                       keeps ? plan_.reached_params() : std::vector<bool>());
  if (ranks() > 1) {
    shards_ = std::make_unique<ShardedParams>(*ctx_, *options_.comm, params, shard_options(),
                                              plan_.reached_params());
    plan_.bind(*ctx_, shards_->values(), shards_->grads());
    shards_->attach(plan_);
    if (eval_plan_) eval_plan_->bind(*ctx_, shards_->values(), {});
    bind_ids();
    return;
  }
  if (cuda)
    device_ = std::make_unique<DeviceParams>(*ctx_, params, options_.dtype, options_.optimizer,
                                             plan_.reached_params());
  else
    grads_ = ParamStore(Device::kCpu, params, "gradients");
  const auto values = cuda ? device_->values() : values_.views();
  plan_.bind(*ctx_, values, cuda ? device_->grads() : grads_.views());
  if (eval_plan_) eval_plan_->bind(*ctx_, values, {});
  bind_ids();
}

TensorView TrainStep::host_slot(int64_t i) const {
  const TensorSpec slot({2, options_.batch, options_.tokens}, DType::kI32);
  return TensorView(host_ids_.data() + static_cast<size_t>(i) * slot.bytes(), slot);
}

void TrainStep::bind_ids() {
  const int64_t n = options_.batch * options_.tokens;
  if (options_.device == Device::kCpu) {
    tokens_ = ids(plan_.input("tokens"), 0, n);
    targets_ = ids(plan_.input("targets"), 0, n);
    if (!eval_plan_) return;
    eval_tokens_ = ids(eval_plan_->input("tokens"), 0, n);
    eval_targets_ = ids(eval_plan_->input("targets"), 0, n);
    return;
  }
  // A slot for every micro-batch: the host fills the next one while the device reads the last.
  const int64_t slots = options_.micro_batches + 1;
  host_ids_ = HostBuffer(options_.device, static_cast<size_t>(2 * n * slots) * sizeof(int32_t));
  tokens_ = ids(host_slot(0), 0, n);
  targets_ = ids(host_slot(0), n, n);
  eval_tokens_ = ids(host_slot(slots - 1), 0, n);
  eval_targets_ = ids(host_slot(slots - 1), n, n);
}

void TrainStep::send_ids(Plan& plan, const TensorView& host) {
  const TensorView x = plan.input("tokens"), y = plan.input("targets");
  copy_later(*ctx_, x, TensorView(host.as<int32_t>(), x.spec));
  copy_later(*ctx_, y, TensorView(host.as<int32_t>() + x.numel(), y.spec));
}

double TrainStep::read_loss(Plan& plan) {
  float loss = 0;
  copy(*ctx_, TensorView(&loss, TensorSpec{}), plan.output("loss"));
  return loss;
}

void TrainStep::forward_backward(bool first, bool last) {
  const float scale = 1.0f / static_cast<float>(options_.micro_batches * ranks());
  if (shards_) {
    if (first) shards_->begin_step();
    const PlanHooks& hooks = shards_->hooks(first, last);
    plan_.forward(*ctx_, &hooks);
    plan_.backward(*ctx_, scale, first, hooks);
    shards_->end_backward(last);
    shards_->add_loss(plan_.output("loss"), first ? Accum::kWrite : Accum::kAdd);
    return;
  }
  plan_.forward(*ctx_);
  plan_.backward(*ctx_, scale, first);
  if (device_) device_->add_loss(*ctx_, plan_.output("loss"), first ? Accum::kWrite : Accum::kAdd);
}

void TrainStep::prepare() {
  RWKV_ASSERT(ctx_ != nullptr, "TrainStep::prepare before allocate");
  if (prepared_ || options_.device == Device::kCpu) return;
  const bool more = options_.micro_batches > 1;
  // Products that add spoil the gradients while they are measured; the first real micro-batch
  // overwrites them.
  measure_gemm_algorithms(*ctx_, options_.measure_gemms);
  const float scale = 1.0f / static_cast<float>(options_.micro_batches * ranks());
  for (const bool first : {true, false}) {
    if (!first && !more) continue;
    if (device_) {
      forward_backward(first, !more);
      continue;
    }
    plan_.forward(*ctx_);  // ranks do this at different times: nothing is exchanged
    plan_.backward(*ctx_, scale, first);
  }
  if (eval_plan_) eval_plan_->forward(*ctx_);
  measure_gemm_algorithms(*ctx_, false);
  ctx_->synchronize("warm-up");
  prepared_ = true;
  if (options_.lanes > 1) {
    ctx_->open_lanes(options_.lanes);
    plan_.use_lanes(options_.lanes);
  }
  if (device_) record_graphs();
}

void TrainStep::record_graphs() {
  recorded_ = true;
  const int64_t n = options_.micro_batches;
  // The graph of the micro-batches in the middle runs several times a step; its marks show one.
  if (!options_.launch_graphs || (timeline_ != nullptr && n > 2)) {
    for (LaunchGraph* g : {&first_graph_, &later_graph_, &last_graph_, &eval_graph_})
      *g = LaunchGraph();
    return;
  }
  first_graph_ = LaunchGraph(*ctx_, [&] { forward_backward(true, n == 1); });
  if (n > (shards_ ? 2 : 1))
    later_graph_ = LaunchGraph(*ctx_, [&] { forward_backward(false, false); });
  if (n > 1 && shards_) last_graph_ = LaunchGraph(*ctx_, [&] { forward_backward(false, true); });
  if (eval_plan_) eval_graph_ = LaunchGraph(*ctx_, [&] { eval_plan_->forward(*ctx_); });
  recorded_workspace_ = ctx_->workspace_bytes();
}

void TrainStep::watch(Timeline* timeline) {
  RWKV_ASSERT(ctx_ != nullptr, "TrainStep::watch before allocate");
  timeline_ = timeline;
  plan_.watch(timeline);
  if (shards_) shards_->watch(timeline);
  if (recorded_) record_graphs();
}

void TrainStep::gather() {
  if (shards_) shards_->gather();
}

void TrainStep::fill(std::span<const float> values) {
  const ValuePattern pattern(*ctx_, values);
  if (shards_) shards_->fill(pattern);
  if (device_) device_->fill(pattern);
  if (!shards_ && !device_)
    pattern.fill(values_.flat().data(), 0, static_cast<int64_t>(values_.flat().size()),
                 DType::kF32);
  ctx_->synchronize("values of a benchmark");
}

void TrainStep::upload() {
  RWKV_ASSERT(keeps_on_host(), "upload without host copies");
  if (shards_) shards_->upload(values_, optimizer_->m(), optimizer_->v());
  if (device_) device_->upload(*ctx_, values_, optimizer_->m(), optimizer_->v());
}

void TrainStep::initialize(const InitOptions& options) {
  if (!shards_) {
    model_->init_params(values_, options);
    upload();
    return;
  }
  const ParamRegistry& params = model_->params();
  const std::vector<InitTensor> all = model_->initial_values(options);
  const std::vector<InitTensor> share = init_share(all, options_.comm->rank(), ranks());
  // Memory that is not written to is not taken: of the others' tensors there are only addresses.
  const ParamStore values(Device::kCpu, params, "initial values");
  std::vector<bool> mine(params.size());
  for (const InitTensor& t : share) mine[static_cast<size_t>(t.id)] = true;
  fill_tensors(share, values);
  shards_->upload_initial(values, mine);
}

void TrainStep::download() {
  RWKV_ASSERT(keeps_on_host(), "download without host copies");
  if (shards_) shards_->download(values_, optimizer_->m(), optimizer_->v());
  if (device_) device_->download(*ctx_, values_, optimizer_->m(), optimizer_->v());
}

void TrainStep::replay(const LaunchGraph& graph) {
  RWKV_ASSERT(ctx_->workspace_bytes() == recorded_workspace_, "the workspace moved");
  graph.launch(*ctx_);
}

void TrainStep::accumulate(int64_t i) {
  RWKV_ASSERT(ctx_ != nullptr, "TrainStep::accumulate before allocate");
  const bool first = i == 0, last = i + 1 == options_.micro_batches;
  if (options_.device == Device::kCpu) {
    if (first) loss_sum_ = 0;
    forward_backward(first, last);
    loss_sum_ += read_loss(plan_);
    return;
  }
  prepare();
  if (!recorded_) {
    // Ranks record in step, after each collective has run once: NCCL connects on first use.
    shards_->warm_up();
    record_graphs();
  }
  send_ids(plan_, host_slot(i));
  if (shards_ && first) shards_->await_update();
  // A traced step shows its ops.
  const LaunchGraph& graph = first ? first_graph_ : last && shards_ ? last_graph_ : later_graph_;
  if (graph && !ctx_->tracer().enabled())
    replay(graph);
  else
    forward_backward(first, last);
  const int64_t n = options_.batch * options_.tokens, next = (i + 1) % options_.micro_batches;
  tokens_ = ids(host_slot(next), 0, n);
  targets_ = ids(host_slot(next), n, n);
}

TrainStep::Result TrainStep::finish(double lr, bool stop) {
  const Result result = finish_step(lr, stop);
  if (timeline_ != nullptr) timeline_->collect();
  return result;
}

TrainStep::Result TrainStep::finish_step(double lr, bool stop) {
  Result s;
  const auto micro_batches = static_cast<double>(options_.micro_batches * ranks());
  if (shards_) {
    const int64_t update = optimizer_->updates() + 1;
    {
      const TraceScope trace(ctx_->tracer(), "clip and AdamW");
      shards_->update(lr, update, stop);
    }
    const RankOutcome outcome = shards_->read_outcome();
    s.loss = outcome.loss_sum / micro_batches;
    s.grad_norm = outcome.norm;
    s.finite = std::isfinite(s.loss) && std::isfinite(s.grad_norm);
    s.stop = outcome.stops > 0;
    if (s.finite) optimizer_->set_updates(update);
    return s;
  }
  s.stop = stop;
  if (device_) {
    const int64_t update = optimizer_->updates() + 1;
    {
      const TraceScope trace(ctx_->tracer(), "clip and AdamW");
      if (timeline_ != nullptr)
        timeline_->enter(0, ctx_->stream(), TimelineKind::kOptimizer, "clip and AdamW");
      device_->update(*ctx_, lr, update);
      if (timeline_ != nullptr) timeline_->leave_lanes();
    }
    const DeviceParams::Outcome outcome = device_->read_outcome(*ctx_);
    s.loss = outcome.loss_sum / micro_batches;
    s.grad_norm = outcome.norm;
    s.finite = std::isfinite(s.loss) && std::isfinite(s.grad_norm);
    if (s.finite) optimizer_->set_updates(update);
    return s;
  }
  const TraceScope trace(ctx_->tracer(), "clip and AdamW");
  if (timeline_ != nullptr)
    timeline_->enter(0, nullptr, TimelineKind::kOptimizer, "clip and AdamW");
  s.loss = loss_sum_ / micro_batches;
  s.grad_norm = optimizer_->grad_norm(grads_);
  s.finite = std::isfinite(s.loss) && std::isfinite(s.grad_norm);
  if (s.finite) optimizer_->step(values_, grads_, lr, s.grad_norm);
  if (timeline_ != nullptr) timeline_->leave_lanes();
  return s;
}

double TrainStep::evaluate() {
  RWKV_ASSERT(eval_plan_ && ctx_ != nullptr, "TrainStep::evaluate without an eval plan");
  if (options_.device == Device::kCuda) {
    prepare();
    send_ids(*eval_plan_, host_slot(options_.micro_batches));
  }
  if (eval_graph_ && !ctx_->tracer().enabled())
    replay(eval_graph_);
  else
    eval_plan_->forward(*ctx_);
  return read_loss(*eval_plan_);
}

}  // namespace rwkv
