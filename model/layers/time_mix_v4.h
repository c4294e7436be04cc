#pragma once
/// RWKV-4 time mix (spec rwkv4 2).

#include "kernels/wkv/wkv.h"
#include "model/config.h"
#include "model/graph/graph.h"
#include "model/params.h"

namespace rwkv {

/// Parameters of one layer's time mix and its forward description.
class TimeMixV4 {
 public:
  /// Adds the tensors "blocks.<layer>.att.*" to the registry.
  TimeMixV4(const ModelConfig& config, int64_t layer, ParamRegistry& params);

  struct Inputs {
    Value h;         ///< ln1 output (B, T, C)
    Value residual;  ///< (B, T, C), added to `out`; may be none
    Value shift;     ///< last h of the tokens before (B, C); none without state
    Value a, b, p;   ///< WKV state, (B, C) f32 each; none without state
  };
  struct Outputs {
    Value out;               ///< (B, T, C)
    Value shift, a, b, p;    ///< state after the last token, if a state came in
    Value r_logit, k, v, y;  ///< intermediates, for tests; the gate before the logistic function
  };
  Outputs build(Graph& g, const Inputs& in, const WkvKernel& wkv) const;

 private:
  int64_t layer_;
  ParamId time_decay_, time_first_, time_mix_k_, time_mix_v_, time_mix_r_;
  ParamId key_, value_, receptance_, output_;
};

}  // namespace rwkv
