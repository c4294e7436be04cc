#pragma once
/// One token of many sequences on a GPU: products of our own that do not depend on the number of
/// sequences (or cuBLASLt's), fused kernels between them. In builds with CUDA.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/stream_event.h"
#include "kernels/decode/layout.h"
#include "kernels/decode/product_plan.h"

namespace rwkv::decode {

/// Matrices that products of many rows want in plain order, besides those of Layout: per layer the
/// transposed second low-rank matrices, [D][rank] each, and the value matrix, [D][F].
struct PlainLayout {
  size_t low_at[kLowRanks] = {}, value_at = 0;  ///< bytes, in a layer
  size_t layer_bytes = 0, bytes = 0;
};
/// Throws ConfigError unless all low-rank widths are multiples of 8.
PlainLayout make_plain_layout(const Layout& layout);

/// What a batch launches products for: r, k, v and the first low-rank matrices together; those
/// matrices alone (beside cuBLASLt); the second ones; W_o; the channel mix; the head.
enum BatchProduct : int { kInProducts, kDown, kUp, kOut, kKey, kValue, kHead, kBatchProducts };
const char* batch_product_name(int kind);
using BatchPlans = std::array<ProductPlan, kBatchProducts>;

struct BatchCall {
  const std::byte* weights = nullptr;  ///< of the layout
  const std::byte* plain = nullptr;    ///< of the plain layout
  const float* params = nullptr;
  std::byte *shift = nullptr, *wkv = nullptr;  ///< states of all slots, as in StepCall
  int8_t* exponents = nullptr;
  int32_t* elapsed = nullptr;
  bool half_state = false;
  float state_scale = 1;
  /// The large products by cuBLASLt: a row's results then depend, in their last bits, on `rows`.
  bool vendor = false;
  BatchPlans plans;                 ///< one of batch_plans for each
  int rows = 0, all_slots = 0;      ///< all_slots: that there are states of
  const int32_t* slots = nullptr;   ///< [rows]; a slot may occur twice only if nobody needs it
  const int32_t* tokens = nullptr;  ///< [rows]
  float* logits = nullptr;          ///< [rows][vocab]
  std::byte* work = nullptr;        ///< batch_bytes(), for this call alone; zeros at first
  /// Null, or called on the host when all up to the end of the stage of this name is queued.
  const std::function<void(const char*)>* mark = nullptr;
};

/// `multiprocessors`: of the GPU, as in make_layout.
size_t batch_bytes(const Layout& layout, int rows, int multiprocessors);
/// Ways to cut the products of a kind, the likely fastest first. All give the same bits.
std::vector<ProductPlan> batch_plans(const Layout& layout, const PlainLayout& plain, int kind,
                                     int rows, int multiprocessors);

/// Lanes of the context that a batch with cuBLASLt uses side by side (Context::open_lanes).
inline constexpr int kBatchLanes = 4;
/// Where lanes meet; must live as long as launches recorded with them.
struct BatchEvents {
  StreamEvent fork, join[kBatchLanes];
};

/// Queued on the context (and its lanes). `weights`: f16 or bf16. A row's results depend on nothing
/// but its own slot and token, unless the products are cuBLASLt's.
void batch_step(Context& ctx, const Layout& layout, const PlainLayout& plain, DType weights,
                const BatchCall& call, BatchEvents& events);
/// The products of a kind alone, of all layers, for timing: works on what lies in `work`.
/// kInProducts: with those of kUp, as in a step.
void batch_products(Context& ctx, const Layout& layout, const PlainLayout& plain, DType weights,
                    const BatchCall& call, int kind);

}  // namespace rwkv::decode
