#pragma once
/// One token of many sequences on a GPU: products by cuBLASLt (and small ones of our own), fused
/// kernels between them. In builds with CUDA.

#include <cstddef>
#include <cstdint>
#include <functional>

#include "kernels/core/context.h"
#include "kernels/core/stream_event.h"
#include "kernels/decode/layout.h"

namespace rwkv::decode {

/// Matrices that products of many rows want in plain order, besides those of Layout: per layer the
/// transposed second low-rank matrices, [D][rank] each, and the value matrix, [D][F].
struct PlainLayout {
  size_t low_at[kLowRanks] = {}, value_at = 0;  ///< bytes, in a layer
  size_t layer_bytes = 0, bytes = 0;
};
/// Throws ConfigError unless all low-rank widths are multiples of 8.
PlainLayout make_plain_layout(const Layout& layout);

struct BatchCall {
  const std::byte* weights = nullptr;  ///< of the layout
  const std::byte* plain = nullptr;    ///< of the plain layout
  const float* params = nullptr;
  std::byte *shift = nullptr, *wkv = nullptr;  ///< states of all slots, as in StepCall
  int32_t* elapsed = nullptr;
  bool half_state = false;
  float state_scale = 1;
  /// Products by kernels of our own instead of cuBLASLt's, but for the head: for small ones.
  bool own_products = false;
  int rows = 0;
  const int32_t* slots = nullptr;   ///< [rows]; a slot may occur twice only if nobody needs it
  const int32_t* tokens = nullptr;  ///< [rows]
  float* logits = nullptr;          ///< [rows][vocab]
  std::byte* work = nullptr;        ///< batch_bytes(), for this call alone
  /// Null, or called on the host when all up to the end of the stage of this name is queued.
  const std::function<void(const char*)>* mark = nullptr;
};

size_t batch_bytes(const Layout& layout, int rows);

/// Lanes of the context that a batch uses side by side (Context::open_lanes).
inline constexpr int kBatchLanes = 4;
/// Where lanes meet; must live as long as launches recorded with them.
struct BatchEvents {
  StreamEvent fork, join[kBatchLanes];
};

/// Queued on the context and its lanes. `weights`: f16 or bf16. A row's results do not depend on
/// the other rows, only, in their last bits, on the number of rows.
void batch_step(Context& ctx, const Layout& layout, const PlainLayout& plain, DType weights,
                const BatchCall& call, BatchEvents& events);

}  // namespace rwkv::decode
