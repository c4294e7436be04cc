#pragma once
/// RWKV-4 channel mix (spec rwkv4 2).

#include "model/config.h"
#include "model/graph/graph.h"
#include "model/params.h"

namespace rwkv {

class ChannelMixV4 {
 public:
  /// Adds the tensors "blocks.<layer>.ffn.*" to the registry.
  ChannelMixV4(const ModelConfig& config, int64_t layer, ParamRegistry& params);

  struct Outputs {
    Value out;      ///< (B, T, C)
    Value shift;    ///< last h (B, C), if a state came in
    Value r_logit;  ///< the gate before the logistic function, for tests
  };
  /// h: ln2 output (B, T, C); shift: last h of the tokens before (B, C) or none; residual (B, T, C)
  /// is added to `out` unless none; fused: key to value as one op (kFeedForward).
  Outputs build(Graph& g, Value h, Value shift, Value residual = {}, bool fused = false) const;

 private:
  int64_t layer_;
  ParamId time_mix_k_, time_mix_r_, key_, receptance_, value_;
};

}  // namespace rwkv
