// RWKV-4 assembled from its layers, and its initial values (spec rwkv4 1, 2).

#include <cmath>

#include "kernels/ops/elementwise.h"
#include "model/block_model.h"
#include "model/init.h"
#include "model/layers/channel_mix_v4.h"
#include "model/layers/time_mix_v4.h"

namespace rwkv {
namespace {

/// Exponent of a fresh sequence's sums: far below every key, so that the first token replaces it.
constexpr float kNothing = -1e38f;

class Rwkv4 final : public BlockModel {
 public:
  explicit Rwkv4(const ModelConfig& config) : BlockModel(config) {
    add_embedding();
    for (int64_t l = 0; l < config_.n_layer; ++l) {
      add_block_norms(l);
      Block b;
      b.att = std::make_unique<TimeMixV4>(config_, l, params_);
      b.ffn = std::make_unique<ChannelMixV4>(config_, l, params_);
      blocks_.push_back(std::move(b));
    }
    add_head();
  }

  using Model::state_specs;
  std::vector<StateSpec> state_specs(int64_t batch, DType activations) const override {
    const int64_t d = config_.n_embd;
    std::vector<StateSpec> specs;
    for (int64_t l = 0; l < config_.n_layer; ++l) {
      const std::string n = str("blocks.", l, ".");
      specs.push_back({n + "att.shift_state", {{batch, d}, activations}});
      specs.push_back({n + "att.wkv_a_state", {batch, d}});
      specs.push_back({n + "att.wkv_b_state", {batch, d}});
      specs.push_back({n + "att.wkv_p_state", {batch, d}, kNothing});
      specs.push_back({n + "ffn.shift_state", {{batch, d}, activations}});
    }
    return specs;
  }

  std::vector<InitTensor> initial_values(const InitOptions& options) const override;

 private:
  struct Block {
    std::unique_ptr<TimeMixV4> att;
    std::unique_ptr<ChannelMixV4> ffn;
  };

  const WkvKernel& select(const GraphOptions& o) const override {
    const WkvShape shape{.batch = o.batch,
                         .tokens = o.tokens,
                         .heads = config_.n_embd,
                         .head_size = 1,
                         .has_state = o.state};
    return select_wkv("wkv4", o.device, o.dtype, shape, o.wkv);
  }

  Value build_block(Graph& g, const BlockCall& call, Value x) const override {
    const Block& b = blocks_[call.layer];
    const std::string n = str("blocks.", call.layer, ".");
    TimeMixV4::Inputs in{.h = block_norm(g, call.layer, 1, x)};
    Value ffn_shift;
    if (!call.state.empty()) {
      in.shift = call.state[0];
      in.a = call.state[1];
      in.b = call.state[2];
      in.p = call.state[3];
      ffn_shift = call.state[4];
    }
    // What the layers add is a value of its own only where it is to be seen.
    if (!call.expose) in.residual = x;
    const TimeMixV4::Outputs att = b.att->build(g, in, call.wkv);
    const Value x_mid = call.expose ? g.apply(kAdd, {x, att.out}, {}, n + "add_att")[0] : att.out;
    const ChannelMixV4::Outputs ffn =
        b.ffn->build(g, block_norm(g, call.layer, 2, x_mid), ffn_shift,
                     call.expose ? Value{} : x_mid, call.fused_ffn);
    if (!call.state.empty()) {
      g.output(n + "att.shift_state", att.shift);
      g.output(n + "att.wkv_a_state", att.a);
      g.output(n + "att.wkv_b_state", att.b);
      g.output(n + "att.wkv_p_state", att.p);
      g.output(n + "ffn.shift_state", ffn.shift);
    }
    if (!call.expose) return ffn.out;
    for (const auto& [name, value] :
         std::initializer_list<std::pair<const char*, Value>>{{"x_in", x},
                                                              {"r_logit", att.r_logit},
                                                              {"k", att.k},
                                                              {"v", att.v},
                                                              {"y", att.y},
                                                              {"time_mix_out", att.out},
                                                              {"ffn_r_logit", ffn.r_logit},
                                                              {"channel_mix_out", ffn.out}})
      g.output(str("layer/", name), value);
    return g.apply(kAdd, {x_mid, ffn.out}, {}, n + "add_ffn")[0];
  }

  std::vector<Block> blocks_;
};

std::vector<InitTensor> Rwkv4::initial_values(const InitOptions& options) const {
  const auto d = static_cast<double>(config_.n_embd);
  const auto layers = static_cast<double>(config_.n_layer);
  Initializer init(params_, options.seed);

  init.uniform("emb.weight", -options.lr, options.lr);
  init.layer_norm("blocks.0.ln0");
  init.layer_norm("ln_out");
  init.orthogonal_by_shape("head.weight", 0.5);

  for (int64_t l = 0; l < config_.n_layer; ++l) {
    const std::string block = str("blocks.", l, "."), att = block + "att.", ffn = block + "ffn.";
    const double rho0 = static_cast<double>(l) / (layers - 1);
    const double rho1 = 1 - static_cast<double>(l) / layers;
    const auto mix = [=](double power, double offset = 0) {
      return [=](double i) { return std::pow(i / d, power) + offset; };
    };
    for (const char* name : {"ln1", "ln2"}) init.layer_norm(block + name);
    init.fill(att + "time_decay",
              [=](double i) { return -5 + 8 * std::pow(i / (d - 1), 0.7 + 1.3 * rho0); });
    init.fill(att + "time_first", [](double i) {
      return std::log(0.3) + 0.5 * static_cast<double>((static_cast<int64_t>(i) + 1) % 3 - 1);
    });
    init.fill(att + "time_mix_k", mix(rho1));
    init.fill(att + "time_mix_v", mix(rho1, 0.3 * rho0));
    init.fill(att + "time_mix_r", mix(0.5 * rho1));
    for (const char* name : {"key", "receptance", "output"})
      init.constant(att + name + ".weight", 0);
    init.orthogonal_by_shape(att + "value.weight", 1);
    init.fill(ffn + "time_mix_k", mix(rho1));
    init.fill(ffn + "time_mix_r", mix(rho1));
    init.orthogonal_by_shape(ffn + "key.weight", 1);
    init.constant(ffn + "value.weight", 0);
    init.constant(ffn + "receptance.weight", 0);
  }
  return init.take();
}

}  // namespace

std::unique_ptr<Model> make_rwkv4(const ModelConfig& config) {
  return std::make_unique<Rwkv4>(config);
}

}  // namespace rwkv
