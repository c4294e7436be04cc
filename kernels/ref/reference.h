#pragma once
/// The reference of every op that works on RefCall, by name. WKV has its own form (wkv7_ref.h).

#include <string_view>

#include "kernels/ref/elementwise_ref.h"
#include "kernels/ref/embedding_ref.h"
#include "kernels/ref/feed_forward_ref.h"
#include "kernels/ref/key_prepare_ref.h"
#include "kernels/ref/last_token_ref.h"
#include "kernels/ref/layer_norm_ref.h"
#include "kernels/ref/linear_cross_entropy_ref.h"
#include "kernels/ref/linear_ref.h"
#include "kernels/ref/low_rank_ref.h"
#include "kernels/ref/token_shift_ref.h"
#include "kernels/ref/value_residual_ref.h"
#include "kernels/ref/wkv7_output_ref.h"

namespace rwkv::ref {

template <class S>
struct Reference {
  std::string_view op;
  void (*forward)(RefCall<S>&);
  void (*backward)(RefCall<S>&);
};

/// Null members if the op has no reference of this form.
template <class S>
Reference<S> reference_of(std::string_view op) {
  static constexpr Reference<S> kAll[] = {
      {"embedding", embedding_forward<S>, embedding_backward<S>},
      {"last_token", last_token_forward<S>, last_token_backward<S>},
      {"layer_norm", layer_norm_forward<S>, layer_norm_backward<S>},
      {"token_shift", token_shift_forward<S>, token_shift_backward<S>},
      {"linear", linear_forward<S>, linear_backward<S>},
      {"feed_forward", feed_forward_forward<S>, feed_forward_backward<S>},
      {"low_rank", low_rank_forward<S>, low_rank_backward<S>},
      {"add", add_forward<S>, add_backward<S>},
      {"squared_relu", squared_relu_forward<S>, squared_relu_backward<S>},
      {"gate", gate_forward<S>, gate_backward<S>},
      {"key_prepare", key_prepare_forward<S>, key_prepare_backward<S>},
      {"value_residual", value_residual_forward<S>, value_residual_backward<S>},
      {"wkv7_output", wkv7_output_forward<S>, wkv7_output_backward<S>},
      {"linear_cross_entropy", linear_cross_entropy_forward<S>, linear_cross_entropy_backward<S>},
  };
  for (const auto& r : kAll)
    if (r.op == op) return r;
  return {op, nullptr, nullptr};
}

}  // namespace rwkv::ref
