#pragma once
/// What ranks of a CUDA run compute around their collectives. Queued on the stream that is passed;
/// deterministic.

#include <cstddef>
#include <cstdint>

#include "kernels/core/context.h"
#include "kernels/core/dtype.h"

namespace rwkv {

/// What one rank tells the others about a step.
struct RankRecord {
  double squares = 0;   ///< of the gradients of its shard
  double loss_sum = 0;  ///< over its micro-batches
  double stop = 0;      ///< 1: it was asked to stop
};

/// What all of them say.
struct RankOutcome {
  double norm = 0;  ///< of the gradients; NaN if a loss is not finite
  double loss_sum = 0, stops = 0;
};

/// Adds the records in the order of ranks; device memory both. Throws DeviceError on other devices.
void combine_records(Context& ctx, const RankRecord* records, size_t ranks, RankOutcome* outcome);
/// The same on the host.
RankOutcome combine_records(const RankRecord* records, size_t ranks);

/// to = from rounded to bf16 (nearest, ties to even), and back. n is a multiple of 8; addresses are
/// multiples of 16 bytes.
void narrow_to_bf16(Stream stream, const float* from, BF16* to, int64_t n);
void widen_to_f32(Stream stream, const BF16* from, float* to, int64_t n);

/// to[i] = sum over r of from[r * n + i], in the order of r and in f32, rounded once for bf16.
/// `type` is f32 or bf16, n a multiple of 8; addresses are multiples of 16 bytes.
void sum_parts(Stream stream, DType type, const void* from, int ranks, int64_t n, void* to);

}  // namespace rwkv
