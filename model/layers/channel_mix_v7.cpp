#include "model/layers/channel_mix_v7.h"

#include "kernels/ops/elementwise.h"
#include "kernels/ops/feed_forward.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/token_shift.h"

namespace rwkv {

ChannelMixV7::ChannelMixV7(const ModelConfig& c, int64_t layer, ParamRegistry& params)
    : layer_(layer) {
  const std::string block = str("blocks.", layer), ffn = block + ".ffn.";
  x_k_ = params.add({.name = ffn + "x_k", .spec = {1, 1, c.n_embd}, .bucket = block});
  key_ = params.add({.name = ffn + "key.weight",
                     .spec = {c.dim_ffn, c.n_embd},
                     .weight_decay = true,
                     .matrix = true,
                     .bucket = block});
  value_ = params.add({.name = ffn + "value.weight",
                       .spec = {c.n_embd, c.dim_ffn},
                       .weight_decay = true,
                       .matrix = true,
                       .sparse_input = true,
                       .bucket = block});
}

ChannelMixV7::Outputs ChannelMixV7::build(Graph& g, Value h, Value shift, Value residual,
                                          bool fused) const {
  const std::string n = str("blocks.", layer_, ".ffn.");
  const Values shifted = g.apply(kTokenShift, shift ? Values{h, shift} : Values{h}, {x_k_},
                                 TokenShiftAttrs{}, n + "shift");
  Outputs o;
  if (shift) o.shift = shifted[1];
  if (fused) {
    o.out = g.apply(kFeedForward, residual ? Values{shifted[0], residual} : Values{shifted[0]},
                    {key_, value_}, n + "feed_forward")[0];
    return o;
  }
  const Value p = g.apply(kLinear, {shifted[0]}, {key_}, n + "key")[0];
  const Value c = g.apply(kSquaredRelu, {p}, {}, n + "relu2")[0];
  o.hidden = c;
  o.out = g.apply(kLinear, residual ? Values{c, residual} : Values{c}, {value_},
                  LinearAttrs{.transposed = g.transposed(value_)}, n + "value")[0];
  return o;
}

}  // namespace rwkv
