#include "model/block_model.h"

#include "kernels/ops/embedding.h"
#include "kernels/ops/last_token.h"
#include "kernels/ops/layer_norm.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/linear_cross_entropy.h"

namespace rwkv {
namespace {

Value layer_norm(Graph& g, Value x, ParamId weight, ParamId bias, std::string label) {
  return g.apply(kLayerNorm, {x}, {weight, bias}, LayerNormAttrs{}, std::move(label))[0];
}

/// One counter for all layers: they see the same tokens.
Model::StateSpec elapsed_spec(int64_t batch) {
  return {"elapsed", {{batch}, DType::kI32}};
}

/// As one op the channel mix can neither run beside other work in parts nor be quicker for few
/// rows.
bool fuses_ffn(const GraphOptions& o) {
  constexpr int64_t kFewest = 4096;
  return o.device == Device::kCuda && o.dtype == DType::kBF16 && o.batch * o.tokens >= kFewest;
}

}  // namespace

std::string exponent_name(std::string_view state) {
  constexpr std::string_view kEnd = ".wkv_state";
  if (!state.ends_with(kEnd)) return "";
  return str(state.substr(0, state.size() - kEnd.size()), ".wkv_exponent");
}

void Model::init_params(ParamStore& values, const InitOptions& options) const {
  const std::vector<InitTensor> tensors = initial_values(options);
  RWKV_ASSERT(tensors.size() == params_.size(), tensors.size(), " initial values for ",
              params_.size(), " parameters");
  fill_tensors(tensors, values);
}

std::vector<Model::StateSpec> Model::state_specs(int64_t batch, DType activations,
                                                 std::string_view wkv) const {
  if (!wkv_counts_tokens(wkv)) return state_specs(batch, activations);
  std::vector<StateSpec> specs;
  for (StateSpec& s : state_specs(batch, activations)) {
    const std::string exponent = exponent_name(s.name);
    if (exponent.empty()) {
      specs.push_back(s);
      continue;
    }
    s.spec.dtype = DType::kF16;
    s.scale = kHalfStateScale;
    specs.push_back(s);
    specs.push_back({exponent, TensorSpec({batch, s.spec[1], s.spec[2]}, DType::kI8)});
  }
  specs.push_back(elapsed_spec(batch));
  return specs;
}

void BlockModel::add_embedding() {
  emb_ = params_.add({.name = "emb.weight",
                      .spec = {config_.vocab_size, config_.n_embd},
                      .weight_decay = true,
                      .matrix = true,
                      .bucket = "emb"});
}

void BlockModel::add_block_norms(int64_t layer) {
  const std::string block = str("blocks.", layer);
  if (layer == 0) ln0_ = add_layer_norm(block + ".ln0", block);
  ln1_.push_back(add_layer_norm(block + ".ln1", block));
  ln2_.push_back(add_layer_norm(block + ".ln2", block));
}

void BlockModel::add_head() {
  ln_out_ = add_layer_norm("ln_out", "head");
  head_ = params_.add({.name = "head.weight",
                       .spec = {config_.vocab_size, config_.n_embd},
                       .weight_decay = true,
                       .matrix = true,
                       .bucket = "head"});
}

BlockModel::LayerNormParams BlockModel::add_layer_norm(const std::string& name,
                                                       const std::string& bucket) {
  const ParamId w =
      params_.add({.name = name + ".weight", .spec = {config_.n_embd}, .bucket = bucket});
  const ParamId b =
      params_.add({.name = name + ".bias", .spec = {config_.n_embd}, .bucket = bucket});
  return {w, b};
}

Value BlockModel::block_norm(Graph& g, size_t layer, int which, Value x) const {
  const LayerNormParams& p = (which == 1 ? ln1_ : ln2_)[layer];
  return layer_norm(g, x, p.weight, p.bias, str("blocks.", layer, ".ln", which));
}

std::string BlockModel::wkv_name(const GraphOptions& o) const {
  return std::string(select(o).name);
}

Graph BlockModel::build(const GraphOptions& o) const {
  RWKV_CHECK(o.batch >= 1 && o.tokens >= 1, ConfigError, "recording the model: batch ", o.batch,
             " and tokens ", o.tokens, " must be at least 1");
  const WkvKernel& wkv = select(o);
  Graph g(o.packed || o.weights != DType::kF32 ? params_.packed_graph_params(o.weights)
                                               : params_.graph_params(o.dtype));
  const Value tokens = g.input("tokens", {{o.batch, o.tokens}, DType::kI32});
  std::vector<Value> state;
  if (o.state)
    for (const StateSpec& s : state_specs(o.batch, o.dtype, wkv.name))
      state.push_back(g.input(s.name, s.spec));
  Value elapsed, elapsed_out;
  if (o.state && wkv.state == DType::kF16) {
    elapsed = state.back();  // the last of state_specs
    state.pop_back();
  }
  const size_t per_block = state.size() / ln1_.size();

  Value x = g.apply(kEmbedding, {tokens}, {emb_}, "emb")[0];
  x = layer_norm(g, x, ln0_.weight, ln0_.bias, "ln0");
  Value v_first;
  for (size_t l = 0; l < ln1_.size(); ++l) {
    const auto scope = g.block(str("blocks.", l));
    const BlockCall call{.layer = l,
                         .state = std::span<const Value>(state).subspan(l * per_block, per_block),
                         .wkv = wkv,
                         .expose = o.expose_layer == static_cast<int64_t>(l),
                         .fused_ffn = fuses_ffn(o),
                         .v_first = v_first,
                         .elapsed = elapsed,
                         .elapsed_out = elapsed_out};
    x = build_block(g, call, x);
  }
  if (elapsed) g.output(elapsed_spec(o.batch).name, elapsed_out);

  if (o.mode == GraphOptions::Mode::kLastLogits) x = g.apply(kLastToken, {x}, {}, "last")[0];
  x = layer_norm(g, x, ln_out_.weight, ln_out_.bias, "ln_out");
  if (o.mode == GraphOptions::Mode::kLoss) {
    const Value targets = g.input("targets", {{o.batch, o.tokens}, DType::kI32});
    const Values loss = g.apply(kLinearCrossEntropy, {x, targets}, {head_},
                                LinearCrossEntropyAttrs{o.l2wrap, o.loss_chunk_tokens}, "loss");
    g.output("loss", loss[0]);
    g.output("token_loss", loss[1]);
  } else {
    g.output("logits", g.apply(kLinear, {x}, {head_}, LinearAttrs{o.f32_logits}, "head")[0]);
  }
  return g;
}

std::unique_ptr<Model> make_model(const ModelConfig& config) {
  ModelConfig finished = config;
  finished.finish();
  return finished.architecture == "rwkv4" ? make_rwkv4(finished) : make_rwkv7(finished);
}

}  // namespace rwkv
