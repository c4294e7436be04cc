#include "model/layers/time_mix_v7.h"

#include "kernels/ops/key_prepare.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/low_rank.h"
#include "kernels/ops/token_shift.h"
#include "kernels/ops/value_residual.h"
#include "kernels/ops/wkv7_output.h"
#include "model/rwkv.h"

namespace rwkv {

TimeMixV7::TimeMixV7(const ModelConfig& c, int64_t layer, ParamRegistry& params)
    : layer_(layer), head_size_(c.head_size) {
  const std::string block = str("blocks.", layer), att = block + ".att.";
  const int64_t d = c.n_embd;
  const auto vector = [&](const char* name, float lr_scale = 1) {
    return params.add(
        {.name = att + name, .spec = {1, 1, d}, .lr_scale = lr_scale, .bucket = block});
  };
  const auto matrix = [&](const char* name, int64_t rows, int64_t cols, bool decay) {
    return params.add({.name = att + name,
                       .spec = {rows, cols},
                       .weight_decay = decay,
                       .matrix = true,
                       .bucket = block});
  };
  x_r_ = vector("x_r");
  x_w_ = vector("x_w");
  x_k_ = vector("x_k");
  x_v_ = vector("x_v");
  x_a_ = vector("x_a");
  x_g_ = vector("x_g");
  w0_ = vector("w0", 2);
  w1_ = matrix("w1", d, c.rank_w, false);
  w2_ = matrix("w2", c.rank_w, d, false);
  a0_ = vector("a0");
  a1_ = matrix("a1", d, c.rank_a, false);
  a2_ = matrix("a2", c.rank_a, d, false);
  if (layer > 0) {
    v0_ = vector("v0");
    v1_ = matrix("v1", d, c.rank_v, false);
    v2_ = matrix("v2", c.rank_v, d, false);
  }
  g1_ = matrix("g1", d, c.rank_g, false);
  g2_ = matrix("g2", c.rank_g, d, false);
  k_k_ = vector("k_k");
  k_a_ = vector("k_a");
  r_k_ = params.add({.name = att + "r_k", .spec = {c.n_head(), c.head_size}, .bucket = block});
  receptance_ = matrix("receptance.weight", d, d, true);
  key_ = matrix("key.weight", d, d, true);
  value_ = matrix("value.weight", d, d, true);
  output_ = matrix("output.weight", d, d, true);
  ln_x_weight_ = params.add({.name = att + "ln_x.weight", .spec = {d}, .bucket = block});
  ln_x_bias_ = params.add({.name = att + "ln_x.bias", .spec = {d}, .bucket = block});
}

TimeMixV7::Outputs TimeMixV7::build(Graph& g, const Inputs& in, const WkvKernel& wkv) const {
  const std::string n = str("blocks.", layer_, ".att.");
  const bool state = static_cast<bool>(in.shift);
  Outputs o;

  const Values shifted =
      g.apply(kTokenShift, state ? Values{in.h, in.shift} : Values{in.h},
              {x_r_, x_w_, x_k_, x_v_, x_a_, x_g_}, TokenShiftAttrs{}, n + "shift");
  const Value xr = shifted[0], xw = shifted[1], xk = shifted[2], xv = shifted[3], xa = shifted[4],
              xg = shifted[5];
  if (state) o.shift = shifted[6];

  o.r = g.apply(kLinear, {xr}, {receptance_}, n + "receptance")[0];
  const Value k0 = g.apply(kLinear, {xk}, {key_}, n + "key")[0];
  const Value v0 = g.apply(kLinear, {xv}, {value_}, n + "value")[0];
  o.w_logit =
      g.apply(kLowRank, {xw}, {w1_, w2_, w0_}, LowRankAttrs{Activation::kTanh}, n + "decay")[0];
  const Value iclr_logit =
      g.apply(kLowRank, {xa}, {a1_, a2_, a0_}, LowRankAttrs{Activation::kNone}, n + "iclr")[0];
  o.gate = g.apply(kLowRank, {xg}, {g1_, g2_}, LowRankAttrs{Activation::kSigmoid}, n + "gate")[0];

  if (layer_ == 0) {
    o.v = o.v_first = v0;
  } else {
    const Value nu_logit = g.apply(kLowRank, {xv}, {v1_, v2_, v0_}, LowRankAttrs{Activation::kNone},
                                   n + "value_mix")[0];
    o.v = g.apply(kValueResidual, {v0, in.v_first, nu_logit}, {}, n + "value_residual")[0];
    o.v_first = in.v_first;
  }
  const Values kab = g.apply(kKeyPrepare, {k0, iclr_logit}, {k_k_, k_a_},
                             KeyPrepareAttrs{head_size_}, n + "key_prepare");
  o.k = kab[0];
  o.a = kab[1];
  o.b = kab[2];

  Values wkv_in = {o.r, o.w_logit, o.k, o.v, o.a, o.b};
  if (state) wkv_in.push_back(in.wkv);
  if (in.elapsed) wkv_in.insert(wkv_in.end(), {in.elapsed, in.exponent});
  const bool half = wkv.state == DType::kF16;
  const Wkv7Attrs attrs{head_size_, &wkv, half ? kHalfStateScale : 1, half};
  const Values wkv_out = g.apply(kWkv7, wkv_in, {}, attrs, n + "wkv");
  o.y = wkv_out[0];
  if (state) o.wkv = wkv_out[1];
  if (in.elapsed) {
    o.elapsed = wkv_out[2];
    o.exponent = wkv_out[3];
  }

  const Value mixed =
      g.apply(kWkv7Output, {o.y, o.r, o.k, o.v, o.gate}, {ln_x_weight_, ln_x_bias_, r_k_},
              Wkv7OutputAttrs{.head_size = head_size_}, n + "wkv_output")[0];
  o.out = g.apply(kLinear, in.residual ? Values{mixed, in.residual} : Values{mixed}, {output_},
                  n + "output")[0];
  return o;
}

}  // namespace rwkv
