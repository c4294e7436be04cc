#pragma once
/// Draws on a GPU, where the logits are. In builds with CUDA.

#include <cstddef>
#include <cstdint>

#include "kernels/core/context.h"
#include "kernels/sample/draw.h"

namespace rwkv::sample {

/// The largest vocabulary that the kernels take.
inline constexpr int64_t kMostVocab = 65536;
/// Thread blocks that share a row; each finds the most probable tokens of its part.
inline constexpr int kParts = 8;
inline constexpr int kMostTop = 20;  ///< DrawRow::top

/// What becomes of a row.
struct DrawResult {
  int32_t token = -1;  ///< -1: bad logits
  int32_t bad = -1;    ///< first id whose logit is NaN or +infinity; -1: none
  float bad_logit = 0;
  /// With log-probabilities, of the model's logits: the token's, the largest, total_weight.
  float logit = 0, largest = 0;
  int32_t unused = 0;
  uint64_t total = 0;
};
/// The most probable of a part, in descending order (lower ids first among equals); token -1: none.
struct TopEntry {
  int32_t token = -1;
  float logit = 0;
};

/// An adjustment that changes or joins those of a slot.
struct AdjustmentUpdate {
  int32_t slot = 0, index = 0;
  Adjustment value;
};

/// All pointers are on the device.
struct DrawCall {
  int rows = 0;
  int64_t vocab = 0;        ///< floats from row to row of the logits
  float* logits = nullptr;  ///< [rows][vocab]; become the adjusted ones
  const DrawRow* draws = nullptr;
  /// Adjustments of all slots, [slots][capacity], and what the logits were before.
  Adjustment* adjustments = nullptr;
  float* before = nullptr;
  int64_t capacity = 0;
  const AdjustmentUpdate* updates = nullptr;  ///< done first
  int update_count = 0;
  bool any_adjustments = false, any_top = false;  ///< of the rows
  DrawResult* results = nullptr;                  ///< [rows]
  TopEntry* top = nullptr;                        ///< [rows][kParts][kMostTop]
};

/// Queued on the context. What is drawn is what weigh and pick draw on the CPU, bit for bit.
/// Throws ConfigError for a larger vocabulary than kMostVocab.
void draw_rows(Context& ctx, const DrawCall& call);

}  // namespace rwkv::sample
