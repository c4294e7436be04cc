#pragma once
/// RWKV-7 channel mix (spec rwkv7 2.5).

#include "model/config.h"
#include "model/graph/graph.h"
#include "model/params.h"

namespace rwkv {

class ChannelMixV7 {
 public:
  /// Adds the tensors "blocks.<layer>.ffn.*" to the registry.
  ChannelMixV7(const ModelConfig& config, int64_t layer, ParamRegistry& params);

  struct Outputs {
    Value out;     ///< (B, T, C)
    Value shift;   ///< last h (B, C), if a state came in
    Value hidden;  ///< after the squared ReLU (B, T, F), unless fused
  };
  /// h: ln2 output (B, T, C); shift: last h of the tokens before (B, C) or none;
  /// residual: added to `out`, or none; fused: as one op (kFeedForward).
  Outputs build(Graph& g, Value h, Value shift, Value residual = {}, bool fused = false) const;

 private:
  int64_t layer_;
  ParamId x_k_, key_, value_;
};

}  // namespace rwkv
