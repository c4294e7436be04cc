#pragma once
/// RWKV-7 time mix (spec rwkv7 2.2).

#include "kernels/wkv/wkv.h"
#include "model/config.h"
#include "model/graph/graph.h"
#include "model/params.h"

namespace rwkv {

/// Parameters of one layer's time mix and its forward description.
class TimeMixV7 {
 public:
  /// Adds the tensors "blocks.<layer>.att.*" to the registry.
  TimeMixV7(const ModelConfig& config, int64_t layer, ParamRegistry& params);

  struct Inputs {
    Value h;         ///< ln1 output (B, T, C)
    Value v_first;   ///< layer 0's value (B, T, C); none in layer 0
    Value shift;     ///< last h of the tokens before (B, C); none without state
    Value residual;  ///< (B, T, C), added to `out`; may be none
    Value wkv;       ///< WKV state (B, H, N, N); none without state
    Value elapsed;   ///< (B) i32, for variants with a binary16 state; none without state
    Value exponent;  ///< (B, H, N) i8, likewise
  };
  struct Outputs {
    Value out;                              ///< (B, T, C)
    Value v_first;                          ///< layer 0: its value; other layers: the input
    Value shift, wkv, elapsed, exponent;    ///< state after the last token, as far as it came in
    Value r, w_logit, k, v, gate, a, b, y;  ///< intermediates, for tests
  };
  Outputs build(Graph& g, const Inputs& in, const WkvKernel& wkv) const;

 private:
  int64_t layer_, head_size_;
  ParamId x_r_, x_w_, x_k_, x_v_, x_a_, x_g_;
  ParamId w0_, w1_, w2_, a0_, a1_, a2_, v0_ = -1, v1_ = -1, v2_ = -1, g1_, g2_;
  ParamId k_k_, k_a_, r_k_, receptance_, key_, value_, output_, ln_x_weight_, ln_x_bias_;
};

}  // namespace rwkv
