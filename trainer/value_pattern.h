#pragma once
/// Parameters for benchmarks: a short row of numbers, repeated, without copies on the host.

#include <cstdint>
#include <span>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"

namespace rwkv {

class ValuePattern {
 public:
  /// `values` are what f32 memory gets; bf16 memory gets them rounded. Element i of a flat memory
  /// is number i modulo their count.
  ValuePattern(Context& ctx, std::span<const float> values);
  /// Fills elements [first, first + elements) of the flat memory, which lie at `to`.
  void fill(void* to, int64_t first, int64_t elements, DType type) const;

 private:
  Context& ctx_;
  int64_t count_;
  Arena floats_, halves_;
};

}  // namespace rwkv
