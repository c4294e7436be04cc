#include "model/layers/time_mix_v4.h"

#include "kernels/ops/elementwise.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/token_shift.h"

namespace rwkv {

TimeMixV4::TimeMixV4(const ModelConfig& c, int64_t layer, ParamRegistry& params) : layer_(layer) {
  const std::string block = str("blocks.", layer), att = block + ".att.";
  const int64_t d = c.n_embd;
  const auto vector = [&](const char* name, const TensorSpec& spec, float lr_scale) {
    return params.add({.name = att + name, .spec = spec, .lr_scale = lr_scale, .bucket = block});
  };
  const auto matrix = [&](const char* name) {
    return params.add({.name = att + name,
                       .spec = {d, d},
                       .weight_decay = true,
                       .matrix = true,
                       .bucket = block});
  };
  time_decay_ = vector("time_decay", {d}, 2);
  time_first_ = vector("time_first", {d}, 3);
  time_mix_k_ = vector("time_mix_k", {1, 1, d}, 1);
  time_mix_v_ = vector("time_mix_v", {1, 1, d}, 1);
  time_mix_r_ = vector("time_mix_r", {1, 1, d}, 1);
  key_ = matrix("key.weight");
  value_ = matrix("value.weight");
  receptance_ = matrix("receptance.weight");
  output_ = matrix("output.weight");
}

TimeMixV4::Outputs TimeMixV4::build(Graph& g, const Inputs& in, const WkvKernel& wkv) const {
  const std::string n = str("blocks.", layer_, ".att.");
  const bool state = static_cast<bool>(in.shift);
  Outputs o;

  const Values shifted = g.apply(kTokenShift, state ? Values{in.h, in.shift} : Values{in.h},
                                 {time_mix_k_, time_mix_v_, time_mix_r_},
                                 TokenShiftAttrs{.weights_current = true}, n + "shift");
  if (state) o.shift = shifted[3];
  o.k = g.apply(kLinear, {shifted[0]}, {key_}, n + "key")[0];
  o.v = g.apply(kLinear, {shifted[1]}, {value_}, n + "value")[0];
  o.r_logit = g.apply(kLinear, {shifted[2]}, {receptance_}, n + "receptance")[0];

  const Values wkv_out =
      g.apply(kWkv4, state ? Values{o.k, o.v, in.a, in.b, in.p} : Values{o.k, o.v},
              {time_decay_, time_first_}, Wkv4Attrs{&wkv}, n + "wkv");
  o.y = wkv_out[0];
  if (state) {
    o.a = wkv_out[1];
    o.b = wkv_out[2];
    o.p = wkv_out[3];
  }

  const Value gated = g.apply(kGate, {o.r_logit, o.y}, {}, n + "gate")[0];
  o.out = g.apply(kLinear, in.residual ? Values{gated, in.residual} : Values{gated}, {output_},
                  n + "output")[0];
  return o;
}

}  // namespace rwkv
