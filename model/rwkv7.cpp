// RWKV-7 assembled from its layers, and its initial values (spec rwkv7 1.2, 1.3).

#include <cmath>
#include <functional>

#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/last_token.h"
#include "kernels/ops/layer_norm.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/linear_cross_entropy.h"
#include "model/init.h"
#include "model/layers/channel_mix_v7.h"
#include "model/layers/time_mix_v7.h"
#include "model/rwkv.h"

namespace rwkv {
namespace {

struct LayerNormParams {
  ParamId weight, bias;
};

class Rwkv7 final : public Model {
 public:
  explicit Rwkv7(const ModelConfig& config) : Model(config) {
    const int64_t d = config_.n_embd, v = config_.vocab_size;
    emb_ = params_.add({.name = "emb.weight",
                        .spec = {v, d},
                        .weight_decay = true,
                        .matrix = true,
                        .bucket = "emb"});
    for (int64_t l = 0; l < config_.n_layer; ++l) {
      const std::string block = str("blocks.", l);
      Block b;
      if (l == 0) ln0_ = add_layer_norm(block + ".ln0", block);
      b.ln1 = add_layer_norm(block + ".ln1", block);
      b.ln2 = add_layer_norm(block + ".ln2", block);
      b.att = std::make_unique<TimeMixV7>(config_, l, params_);
      b.ffn = std::make_unique<ChannelMixV7>(config_, l, params_);
      blocks_.push_back(std::move(b));
    }
    ln_out_ = add_layer_norm("ln_out", "head");
    head_ = params_.add({.name = "head.weight",
                         .spec = {v, d},
                         .weight_decay = true,
                         .matrix = true,
                         .bucket = "head"});
  }

  std::vector<StateSpec> state_specs(int64_t batch, DType activations) const override {
    const int64_t d = config_.n_embd, n = config_.head_size;
    std::vector<StateSpec> specs;
    for (int64_t l = 0; l < config_.n_layer; ++l) {
      specs.push_back({str("blocks.", l, ".att.shift_state"), {{batch, d}, activations}});
      specs.push_back({str("blocks.", l, ".att.wkv_state"), {batch, config_.n_head(), n, n}});
      specs.push_back({str("blocks.", l, ".ffn.shift_state"), {{batch, d}, activations}});
    }
    return specs;
  }

  std::string wkv_name(const GraphOptions& o) const override { return std::string(select(o).name); }

  Graph build(const GraphOptions& o) const override {
    RWKV_CHECK(o.batch >= 1 && o.tokens >= 1, ConfigError, "recording the model: batch ", o.batch,
               " and tokens ", o.tokens, " must be at least 1");
    const WkvKernel& wkv = select(o);
    Graph g(params_.graph_params(o.dtype));
    const Value tokens = g.input("tokens", {{o.batch, o.tokens}, DType::kI32});
    std::vector<Value> state;
    if (o.state)
      for (const StateSpec& s : state_specs(o.batch, o.dtype))
        state.push_back(g.input(s.name, s.spec));

    Value x = g.apply(kEmbedding, {tokens}, {emb_}, "emb")[0];
    x = layer_norm(g, x, ln0_, "ln0");
    Value v_first;
    for (size_t l = 0; l < blocks_.size(); ++l)
      x = build_block(g, l, x, v_first, state, wkv, o.expose_layer == static_cast<int64_t>(l));

    if (o.mode == GraphOptions::Mode::kLastLogits) x = g.apply(kLastToken, {x}, {}, "last")[0];
    x = layer_norm(g, x, ln_out_, "ln_out");
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

  void init_params(ParamStore& values, uint64_t seed) const override;

 private:
  struct Block {
    LayerNormParams ln1{}, ln2{};
    std::unique_ptr<TimeMixV7> att;
    std::unique_ptr<ChannelMixV7> ffn;
  };

  LayerNormParams add_layer_norm(const std::string& name, const std::string& bucket) {
    const ParamId w =
        params_.add({.name = name + ".weight", .spec = {config_.n_embd}, .bucket = bucket});
    const ParamId b =
        params_.add({.name = name + ".bias", .spec = {config_.n_embd}, .bucket = bucket});
    return {w, b};
  }

  static Value layer_norm(Graph& g, Value x, LayerNormParams p, std::string label) {
    return g.apply(kLayerNorm, {x}, {p.weight, p.bias}, LayerNormAttrs{}, std::move(label))[0];
  }

  const WkvKernel& select(const GraphOptions& o) const {
    const WkvShape shape{.batch = o.batch,
                         .tokens = o.tokens,
                         .heads = config_.n_head(),
                         .head_size = config_.head_size,
                         .has_state = o.state};
    return select_wkv("wkv7", o.device, o.dtype, shape, o.wkv);
  }

  Value build_block(Graph& g, size_t l, Value x, Value& v_first, const std::vector<Value>& state,
                    const WkvKernel& wkv, bool expose) const {
    const Block& b = blocks_[l];
    const std::string n = str("blocks.", l, ".");
    const auto scope = g.block(str("blocks.", l));
    TimeMixV7::Inputs in{.h = layer_norm(g, x, b.ln1, n + "ln1"), .v_first = v_first};
    Value ffn_shift;
    if (!state.empty()) {
      in.shift = state[3 * l];
      in.wkv = state[3 * l + 1];
      ffn_shift = state[3 * l + 2];
    }
    // What the layers add is a value of its own only where it is to be seen.
    if (!expose) in.residual = x;
    const TimeMixV7::Outputs att = b.att->build(g, in, wkv);
    v_first = att.v_first;
    const Value x_mid = expose ? g.apply(kAdd, {x, att.out}, {}, n + "add_att")[0] : att.out;
    const ChannelMixV7::Outputs ffn = b.ffn->build(g, layer_norm(g, x_mid, b.ln2, n + "ln2"),
                                                   ffn_shift, expose ? Value{} : x_mid);
    if (!state.empty()) {
      g.output(n + "att.shift_state", att.shift);
      g.output(n + "att.wkv_state", att.wkv);
      g.output(n + "ffn.shift_state", ffn.shift);
    }
    if (expose) {
      g.output("layer/x_in", x);
      g.output("layer/v_first", att.v_first);
      for (const auto& [name, value] :
           std::initializer_list<std::pair<const char*, Value>>{{"r", att.r},
                                                                {"w_logit", att.w_logit},
                                                                {"k", att.k},
                                                                {"v", att.v},
                                                                {"g", att.gate},
                                                                {"a", att.a},
                                                                {"b", att.b},
                                                                {"y", att.y},
                                                                {"time_mix_out", att.out},
                                                                {"channel_mix_out", ffn.out}})
        g.output(str("layer/", name), value);
    }
    return expose ? g.apply(kAdd, {x_mid, ffn.out}, {}, n + "add_ffn")[0] : ffn.out;
  }

  ParamId emb_, head_;
  LayerNormParams ln0_{}, ln_out_{};
  std::vector<Block> blocks_;
};

void Rwkv7::init_params(ParamStore& values, uint64_t seed) const {
  const auto d = static_cast<double>(config_.n_embd);
  const int64_t n = config_.head_size, v = config_.vocab_size;
  const auto layers = static_cast<double>(config_.n_layer);

  const auto tensor = [&](const std::string& name) -> std::span<float> {
    const auto id = params_.find(name);
    RWKV_ASSERT(id.has_value(), name);
    const TensorView t = values[*id];
    return {t.f32(), static_cast<size_t>(t.numel())};
  };
  /// Fills a tensor with f(channel).
  const auto fill = [&](const std::string& name, const std::function<double(double)>& f) {
    const std::span<float> t = tensor(name);
    for (size_t i = 0; i < t.size(); ++i) t[i] = static_cast<float>(f(static_cast<double>(i)));
  };
  const auto constant = [&](const std::string& name, double c) {
    fill(name, [c](double) { return c; });
  };
  const auto orthogonal = [&](const std::string& name, double gain) {
    const auto id = params_.find(name);
    RWKV_ASSERT(id.has_value(), name);
    const TensorSpec& s = params_[*id].spec;
    init_orthogonal(tensor(name), s[0], s[1], gain, seed, name);
  };
  /// The gain rule of the low-rank matrices: 0.1, times sqrt(rows / cols) for tall ones.
  const auto low_rank = [&](const std::string& name) {
    const TensorSpec& s = params_[*params_.find(name)].spec;
    const double tall = static_cast<double>(s[0]) / static_cast<double>(s[1]);
    orthogonal(name, 0.1 * (tall > 1 ? std::sqrt(tall) : 1));
  };

  init_uniform(tensor("emb.weight"), -1e-4, 1e-4, seed, "emb.weight");
  for (const char* name : {"blocks.0.ln0", "ln_out"}) {
    constant(str(name, ".weight"), 1);
    constant(str(name, ".bias"), 0);
  }
  const double tall = static_cast<double>(v) / d;
  orthogonal("head.weight", tall > 1 ? 0.5 * std::sqrt(tall) : 0.5);

  for (int64_t l = 0; l < config_.n_layer; ++l) {
    const std::string block = str("blocks.", l, "."), att = block + "att.", ffn = block + "ffn.";
    const double rho0 = static_cast<double>(l) / (layers - 1);
    const double rho1 = 1 - static_cast<double>(l) / layers;
    const auto mix = [&](double power) {
      return [=](double i) { return 1 - std::pow(i / d, power); };
    };
    const auto lin = [=](double i) { return i / (d - 1) - 0.5; };
    const auto zig = [=](double i) {
      const double half = static_cast<double>(n - 1) / 2;
      const double s = (static_cast<double>(static_cast<int64_t>(i) % n) - half) / half;
      return s * std::fabs(s);
    };
    for (const char* name : {"ln1", "ln2"}) {
      constant(block + name + ".weight", 1);
      constant(block + name + ".bias", 0);
    }
    for (const char* name : {"x_r", "x_g"}) fill(att + name, mix(0.2 * rho1));
    for (const char* name : {"x_w", "x_a"}) fill(att + name, mix(0.9 * rho1));
    for (const char* name : {"x_k", "x_v"}) fill(att + name, mix(0.7 * rho1));
    // std::pow(0, 0.3) is 0: layer 0 has exponent 1.
    const double power = 1 + std::pow(rho0, 0.3);
    fill(att + "w0",
         [&](double i) { return -6 + 6 * std::pow(i / (d - 1), power) + 0.5 + 2.5 * zig(i); });
    fill(att + "a0", [&](double i) { return -0.19 + 0.3 * zig(i) + 0.4 * lin(i); });
    for (const char* name : {"w", "a", "g"}) {
      constant(att + name + "1", 0);
      low_rank(att + name + "2");
    }
    if (l > 0) {
      fill(att + "v0", [&](double i) { return 0.73 - 0.4 * lin(i); });
      constant(att + "v1", 0);
      low_rank(att + "v2");
    }
    fill(att + "k_k", [&](double i) { return 0.71 - 0.1 * lin(i); });
    constant(att + "k_a", 1.02);
    constant(att + "r_k", -0.04);
    orthogonal(att + "receptance.weight", 1);
    orthogonal(att + "key.weight", 0.1);
    orthogonal(att + "value.weight", 1);
    constant(att + "output.weight", 0);
    constant(att + "ln_x.weight", std::pow((1 + static_cast<double>(l)) / layers, 0.7));
    constant(att + "ln_x.bias", 0);
    fill(ffn + "x_k", mix(std::pow(rho1, 4)));
    orthogonal(ffn + "key.weight", 1);
    constant(ffn + "value.weight", 0);
  }
}

}  // namespace

std::unique_ptr<Model> make_model(const ModelConfig& config) {
  ModelConfig finished = config;
  finished.finish();
  return std::make_unique<Rwkv7>(finished);
}

}  // namespace rwkv
