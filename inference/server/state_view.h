#pragma once
/// Pictures of a sequence's WKV state.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "inference/scheduler.h"

namespace rwkv {

/// One block's WKV state as (heads, rows, columns) numbers; RWKV-4 has one head and one row.
struct StateLayer {
  std::string name;
  int64_t heads, rows, columns;
  std::vector<float> values;
  float largest() const;  ///< magnitude
  float rms() const;
};

/// The WKV states of a snapshot, by block, as the numbers they stand for where they are kept
/// scaled. Shift states are left out. A tensor of rank 4 holds (blocks, heads, rows, columns).
std::vector<StateLayer> wkv_layers(std::span<const SequenceRunner::StateTensor> layout,
                                   const StateSnapshot& snapshot);

/// {"tokens": n, "layers": [{"name", "heads", "rows", "columns", "largest", "rms"}]}
std::string state_summary_json(const std::vector<StateLayer>& layers, int64_t tokens);
/// One byte per number: 128 is zero, 1 and 255 are -largest and +largest.
std::string state_picture(const StateLayer& layer);

}  // namespace rwkv
