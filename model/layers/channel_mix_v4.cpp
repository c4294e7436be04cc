#include "model/layers/channel_mix_v4.h"

#include "kernels/ops/elementwise.h"
#include "kernels/ops/feed_forward.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/token_shift.h"

namespace rwkv {

ChannelMixV4::ChannelMixV4(const ModelConfig& c, int64_t layer, ParamRegistry& params)
    : layer_(layer) {
  const std::string block = str("blocks.", layer), ffn = block + ".ffn.";
  const auto mix = [&](const char* name) {
    return params.add({.name = ffn + name, .spec = {1, 1, c.n_embd}, .bucket = block});
  };
  const auto matrix = [&](const char* name, int64_t rows, int64_t cols, bool sparse_input = false) {
    return params.add({.name = ffn + name,
                       .spec = {rows, cols},
                       .weight_decay = true,
                       .matrix = true,
                       .sparse_input = sparse_input,
                       .bucket = block});
  };
  time_mix_k_ = mix("time_mix_k");
  time_mix_r_ = mix("time_mix_r");
  key_ = matrix("key.weight", c.dim_ffn, c.n_embd);
  receptance_ = matrix("receptance.weight", c.n_embd, c.n_embd);
  value_ = matrix("value.weight", c.n_embd, c.dim_ffn, true);
}

ChannelMixV4::Outputs ChannelMixV4::build(Graph& g, Value h, Value shift, Value residual,
                                          bool fused) const {
  const std::string n = str("blocks.", layer_, ".ffn.");
  const Values shifted =
      g.apply(kTokenShift, shift ? Values{h, shift} : Values{h}, {time_mix_k_, time_mix_r_},
              TokenShiftAttrs{.weights_current = true}, n + "shift");
  Outputs o;
  if (shift) o.shift = shifted[2];
  Value v;
  if (fused) {
    v = g.apply(kFeedForward, {shifted[0]}, {key_, value_}, n + "feed_forward")[0];
  } else {
    const Value p = g.apply(kLinear, {shifted[0]}, {key_}, n + "key")[0];
    const Value c = g.apply(kSquaredRelu, {p}, {}, n + "relu2")[0];
    v = g.apply(kLinear, {c}, {value_}, LinearAttrs{.transposed = g.transposed(value_)},
                n + "value")[0];
  }
  o.r_logit = g.apply(kLinear, {shifted[1]}, {receptance_}, n + "receptance")[0];
  o.out = g.apply(kGate, residual ? Values{o.r_logit, v, residual} : Values{o.r_logit, v}, {},
                  n + "gate")[0];
  return o;
}

}  // namespace rwkv
