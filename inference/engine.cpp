#include "inference/engine.h"

#include <algorithm>
#include <cstring>

#include "kernels/core/memory.h"
#include "kernels/core/parallel.h"
#include "model/graph/plan.h"

namespace rwkv {

using Mode = GraphOptions::Mode;

/// A plan with its graph, and the tensors that every run touches, looked up once.
struct Engine::Entry {
  int64_t batch, tokens;
  Mode mode;
  Graph graph;
  Plan plan;
  TensorView tokens_in, targets_in, result;
  std::vector<TensorView> state_in, state_out;

  Entry(const Model& model, const GraphOptions& o)
      : batch(o.batch),
        tokens(o.tokens),
        mode(o.mode),
        graph(model.build(o)),
        plan(Plan::build(graph, {.training = false})) {}
};

namespace {

/// Tokens whose logits exist at a time where only the losses are wanted, on CUDA: 256 MiB of them
/// in bf16 with 65536 rows.
constexpr int64_t kCudaLossChunk = 2048;

int64_t batch_of(const RnnState& state) {
  return state.specs()[0].spec[0];
}

}  // namespace

Engine::Engine(const Model& model, const ParamStore& weights, EngineOptions options)
    : model_(model), weights_(weights), options_(std::move(options)), ctx_(options_.device) {
  RWKV_CHECK(options_.prefill_tokens >= 1 && options_.max_plans >= 1, ConfigError,
             "engine: prefill_tokens ", options_.prefill_tokens, " and max_plans ",
             options_.max_plans, " must be at least 1");
  const bool cuda = ctx_.device() == Device::kCuda;
  RWKV_CHECK(options_.dtype == DType::kF32 || (cuda && options_.dtype == DType::kBF16), ConfigError,
             "engine: dtype is ", dtype_name(options_.dtype), " on device ",
             device_name(options_.device), ", expected f32", cuda ? " or bf16" : "");
  RWKV_CHECK(options_.weights == DType::kF32 || !cuda, ConfigError, "engine: weights in ",
             dtype_name(options_.weights),
             " are for the CPU; on CUDA they have the engine's dtype");
  packed_ = !cuda && (options_.fixed_weights || options_.weights != DType::kF32);
  if (cuda || packed_) {
    const ParamRegistry& params = model_.params();
    device_weights_ = DeviceWeights(
        ctx_,
        cuda ? params.graph_params(options_.dtype) : params.packed_graph_params(options_.weights),
        &weights_);
    device_weights_.upload(ctx_, weights_);
  }
  plan_for(1, 1, Mode::kLastLogits);
}

Engine::~Engine() = default;

Engine::Entry& Engine::plan_for(int64_t batch, int64_t tokens, Mode mode) {
  const auto fits = [&](const std::unique_ptr<Entry>& e) {
    return e->batch == batch && e->tokens == tokens && e->mode == mode;
  };
  const auto found = std::ranges::find_if(plans_, fits);
  if (found != plans_.end()) {
    plans_.splice(plans_.begin(), plans_, found);
    return *plans_.front();
  }
  while (static_cast<int64_t>(plans_.size()) >= options_.max_plans) plans_.pop_back();
  const bool cuda = ctx_.device() == Device::kCuda;
  auto made =
      std::make_unique<Entry>(model_, GraphOptions{.batch = batch,
                                                   .tokens = tokens,
                                                   .mode = mode,
                                                   .state = true,
                                                   .l2wrap = false,
                                                   .loss_chunk_tokens = cuda ? kCudaLossChunk : 0,
                                                   .wkv = options_.wkv,
                                                   .device = ctx_.device(),
                                                   .dtype = options_.dtype,
                                                   .packed = packed_,
                                                   .weights = options_.weights,
                                                   .f32_logits = true});
  Entry& e = *made;
  e.plan.bind(ctx_, cuda || packed_ ? device_weights_.views() : weights_.views(), {});
  e.tokens_in = e.plan.input("tokens");
  if (mode == Mode::kLoss) e.targets_in = e.plan.input("targets");
  e.result = e.plan.output(mode == Mode::kLoss ? "token_loss" : "logits");
  for (const auto& s : model_.state_specs(batch, options_.dtype, options_.wkv)) {
    e.state_in.push_back(e.plan.input(s.name));
    e.state_out.push_back(e.plan.output(s.name));
  }
  plans_.push_front(std::move(made));
  return e;
}

int64_t Engine::check_ids(const RnnState& state, std::span<const int32_t> ids,
                          const char* doing) const {
  const int64_t batch = batch_of(state), n = std::ssize(ids), v = model_.config().vocab_size;
  RWKV_ASSERT(state.specs().size() == model_.state_specs(1, options_.dtype, options_.wkv).size(),
              doing, ": the state is of an engine with another WKV variant");
  RWKV_ASSERT(state.device() == ctx_.device(), doing, ": the state is of another engine");
  RWKV_CHECK(n > 0 && n % batch == 0, ShapeError, doing, ": ", n, " token ids for a state of ",
             batch, " sequences, expected a positive multiple");
  for (int64_t i = 0; i < n; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    RWKV_CHECK(id >= 0 && id < v, ConfigError, doing, ": token id ", id, " at position ",
               i % (n / batch), " is outside of the model's vocabulary, 0 to ", v - 1,
               "; is it the right tokenizer?");
  }
  return n / batch;
}

template <class Copy>
void Engine::copy_state(size_t count, const Copy& one) {
  if (ctx_.device() != Device::kCpu) {
    for (size_t i = 0; i < count; ++i) one(i);
    return;
  }
  parallel_for(static_cast<int64_t>(count), 1,
               [&](int64_t i, int64_t) { one(static_cast<size_t>(i)); });
}

Engine::Entry& Engine::run_piece(RnnState& state, std::span<const int32_t> ids, int64_t offset,
                                 int64_t stride, int64_t tokens, Mode mode,
                                 std::span<const int32_t> targets) {
  Entry& e = plan_for(batch_of(state), tokens, mode);
  send(ids, offset, stride, e.tokens_in);
  if (e.targets_in) send(targets, offset, stride, e.targets_in);
  copy_state(e.state_in.size(), [&](size_t i) { copy(ctx_, e.state_in[i], state[i]); });
  e.plan.forward(ctx_);
  copy_state(e.state_out.size(), [&](size_t i) { copy(ctx_, state[i], e.state_out[i]); });
  return e;
}

void Engine::send(std::span<const int32_t> ids, int64_t offset, int64_t stride,
                  const TensorView& to) {
  const int64_t batch = to.dim(0), tokens = to.dim(1);
  TensorView rows = to;
  if (to.device != Device::kCpu) {
    host_ids_.resize(static_cast<size_t>(to.numel()));
    rows = TensorView(host_ids_.data(), to.spec);
  }
  for (int64_t b = 0; b < batch; ++b)
    std::memcpy(rows.as<int32_t>() + b * tokens, ids.data() + b * stride + offset,
                static_cast<size_t>(tokens) * sizeof(int32_t));
  // Memory that is not pinned has been read when the copy returns.
  if (to.device != Device::kCpu) copy(ctx_, to, rows);
}

TensorView Engine::fetch(const TensorView& result) {
  if (result.device == Device::kCpu) return result;
  host_result_.resize(static_cast<size_t>(result.numel()));
  const TensorView host(host_result_.data(), result.spec);
  copy(ctx_, host, result);
  return host;
}

TensorView Engine::prefill(RnnState& state, std::span<const int32_t> ids) {
  const int64_t n = check_ids(state, ids, "prefill");
  TensorView last;
  for (int64_t t = 0; t < n; t += options_.prefill_tokens)
    last = run_piece(state, ids, t, n, std::min(options_.prefill_tokens, n - t), Mode::kLastLogits)
               .result;
  return {fetch(last).data, {batch_of(state), last.last()}};
}

TensorView Engine::decode(RnnState& state, std::span<const int32_t> ids) {
  const int64_t n = check_ids(state, ids, "decode");
  RWKV_CHECK(n == 1, ShapeError, "decode: ", n, " tokens per sequence, expected 1");
  const TensorView last = run_piece(state, ids, 0, 1, 1, Mode::kLastLogits).result;
  return {fetch(last).data, {batch_of(state), last.last()}};
}

void Engine::all_logits(RnnState& state, std::span<const int32_t> ids, const LogitsSink& sink) {
  const int64_t n = check_ids(state, ids, "logits");
  for (int64_t t = 0; t < n; t += options_.prefill_tokens)
    sink(t,
         fetch(run_piece(state, ids, t, n, std::min(options_.prefill_tokens, n - t), Mode::kLogits)
                   .result));
}

void Engine::token_loss(RnnState& state, std::span<const int32_t> ids,
                        std::span<const int32_t> targets, std::span<float> loss) {
  const int64_t n = check_ids(state, ids, "token loss");
  RWKV_CHECK(targets.size() == ids.size() && loss.size() == ids.size(), ShapeError,
             "token loss: ", ids.size(), " ids, ", targets.size(), " targets and room for ",
             loss.size(), " losses, expected the same number of each");
  check_ids(state, targets, "token loss, targets");
  const int64_t batch = batch_of(state);
  for (int64_t t = 0; t < n; t += options_.prefill_tokens) {
    const int64_t m = std::min(options_.prefill_tokens, n - t);
    const TensorView piece = fetch(run_piece(state, ids, t, n, m, Mode::kLoss, targets).result);
    for (int64_t b = 0; b < batch; ++b)
      std::memcpy(loss.data() + b * n + t, piece.f32() + b * m,
                  static_cast<size_t>(m) * sizeof(float));
  }
}

size_t Engine::plan_bytes() const {
  size_t sum = 0;
  for (const auto& e : plans_) sum += e->plan.activation_bytes();
  return sum;
}

}  // namespace rwkv
