// RWKV-7 assembled from its layers, and its initial values (spec rwkv7 1.2, 1.3).

#include <cmath>

#include "kernels/ops/elementwise.h"
#include "model/block_model.h"
#include "model/init.h"
#include "model/layers/channel_mix_v7.h"
#include "model/layers/time_mix_v7.h"

namespace rwkv {
namespace {

class Rwkv7 final : public BlockModel {
 public:
  explicit Rwkv7(const ModelConfig& config) : BlockModel(config) {
    add_embedding();
    for (int64_t l = 0; l < config_.n_layer; ++l) {
      add_block_norms(l);
      Block b;
      b.att = std::make_unique<TimeMixV7>(config_, l, params_);
      b.ffn = std::make_unique<ChannelMixV7>(config_, l, params_);
      blocks_.push_back(std::move(b));
    }
    add_head();
  }

  using Model::state_specs;
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

  std::vector<InitTensor> initial_values(const InitOptions& options) const override;

 private:
  struct Block {
    std::unique_ptr<TimeMixV7> att;
    std::unique_ptr<ChannelMixV7> ffn;
  };

  const WkvKernel& select(const GraphOptions& o) const override {
    const WkvShape shape{.batch = o.batch,
                         .tokens = o.tokens,
                         .heads = config_.n_head(),
                         .head_size = config_.head_size,
                         .has_state = o.state};
    return select_wkv("wkv7", o.device, o.dtype, shape, o.wkv);
  }

  Value build_block(Graph& g, const BlockCall& call, Value x) const override {
    const Block& b = blocks_[call.layer];
    const std::string n = str("blocks.", call.layer, ".");
    TimeMixV7::Inputs in{.h = block_norm(g, call.layer, 1, x), .v_first = call.v_first};
    Value ffn_shift;
    if (!call.state.empty()) {
      in.shift = call.state[0];
      in.wkv = call.state[1];
      ffn_shift = call.state.back();
      in.elapsed = call.elapsed;
      if (in.elapsed) in.exponent = call.state[2];
    }
    // What the layers add is a value of its own only where it is to be seen.
    if (!call.expose) in.residual = x;
    const TimeMixV7::Outputs att = b.att->build(g, in, call.wkv);
    call.v_first = att.v_first;
    call.elapsed_out = att.elapsed;
    const Value x_mid = call.expose ? g.apply(kAdd, {x, att.out}, {}, n + "add_att")[0] : att.out;
    const ChannelMixV7::Outputs ffn =
        b.ffn->build(g, block_norm(g, call.layer, 2, x_mid), ffn_shift,
                     call.expose ? Value{} : x_mid, call.fused_ffn);
    if (!call.state.empty()) {
      g.output(n + "att.shift_state", att.shift);
      g.output(n + "att.wkv_state", att.wkv);
      if (att.exponent) g.output(n + "att.wkv_exponent", att.exponent);
      g.output(n + "ffn.shift_state", ffn.shift);
    }
    if (!call.expose) return ffn.out;
    for (const auto& [name, value] :
         std::initializer_list<std::pair<const char*, Value>>{{"x_in", x},
                                                              {"v_first", att.v_first},
                                                              {"r", att.r},
                                                              {"w_logit", att.w_logit},
                                                              {"k", att.k},
                                                              {"v", att.v},
                                                              {"g", att.gate},
                                                              {"a", att.a},
                                                              {"b", att.b},
                                                              {"y", att.y},
                                                              {"hidden", ffn.hidden},
                                                              {"time_mix_out", att.out},
                                                              {"channel_mix_out", ffn.out}})
      g.output(str("layer/", name), value);
    return g.apply(kAdd, {x_mid, ffn.out}, {}, n + "add_ffn")[0];
  }

  std::vector<Block> blocks_;
};

std::vector<InitTensor> Rwkv7::initial_values(const InitOptions& options) const {
  const auto d = static_cast<double>(config_.n_embd);
  const int64_t n = config_.head_size;
  const auto layers = static_cast<double>(config_.n_layer);
  Initializer init(params_, options.seed);
  /// The gain rule of the low-rank matrices: 0.1, times sqrt(rows / cols) for tall ones.
  const auto low_rank = [&](const std::string& name) { init.orthogonal_by_shape(name, 0.1); };

  init.uniform("emb.weight", -1e-4, 1e-4);
  init.layer_norm("blocks.0.ln0");
  init.layer_norm("ln_out");
  init.orthogonal_by_shape("head.weight", 0.5);

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
    for (const char* name : {"ln1", "ln2"}) init.layer_norm(block + name);
    for (const char* name : {"x_r", "x_g"}) init.fill(att + name, mix(0.2 * rho1));
    for (const char* name : {"x_w", "x_a"}) init.fill(att + name, mix(0.9 * rho1));
    for (const char* name : {"x_k", "x_v"}) init.fill(att + name, mix(0.7 * rho1));
    // std::pow(0, 0.3) is 0: layer 0 has exponent 1.
    const double power = 1 + std::pow(rho0, 0.3);
    init.fill(att + "w0",
              [=](double i) { return -6 + 6 * std::pow(i / (d - 1), power) + 0.5 + 2.5 * zig(i); });
    init.fill(att + "a0", [=](double i) { return -0.19 + 0.3 * zig(i) + 0.4 * lin(i); });
    for (const char* name : {"w", "a", "g"}) {
      init.constant(att + name + "1", 0);
      low_rank(att + name + "2");
    }
    if (l > 0) {
      init.fill(att + "v0", [=](double i) { return 0.73 - 0.4 * lin(i); });
      init.constant(att + "v1", 0);
      low_rank(att + "v2");
    }
    init.fill(att + "k_k", [=](double i) { return 0.71 - 0.1 * lin(i); });
    init.constant(att + "k_a", 1.02);
    init.constant(att + "r_k", -0.04);
    init.orthogonal(att + "receptance.weight", 1);
    init.orthogonal(att + "key.weight", 0.1);
    init.orthogonal(att + "value.weight", 1);
    init.constant(att + "output.weight", 0);
    init.constant(att + "ln_x.weight", std::pow((1 + static_cast<double>(l)) / layers, 0.7));
    init.constant(att + "ln_x.bias", 0);
    init.fill(ffn + "x_k", mix(std::pow(rho1, 4)));
    init.orthogonal(ffn + "key.weight", 1);
    init.constant(ffn + "value.weight", 0);
  }
  return init.take();
}

}  // namespace

std::unique_ptr<Model> make_rwkv7(const ModelConfig& config) {
  return std::make_unique<Rwkv7>(config);
}

}  // namespace rwkv
