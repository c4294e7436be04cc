#pragma once
/// The CUDA side of kernels/ops/exchange.h.

#include "kernels/ops/exchange.h"

namespace rwkv::cuda {

#if RWKV_HAVE_CUDA
void combine_records(Stream stream, const RankRecord* records, size_t ranks, RankOutcome* outcome);
void narrow_to_bf16(Stream stream, const float* from, BF16* to, int64_t n);
void widen_to_f32(Stream stream, const BF16* from, float* to, int64_t n);
void sum_parts(Stream stream, DType type, const void* from, int ranks, int64_t n, void* to);
#else
// Never reached: no CUDA context can be made in a build without CUDA.
inline void combine_records(Stream, const RankRecord*, size_t, RankOutcome*) {}
inline void narrow_to_bf16(Stream, const float*, BF16*, int64_t) {}
inline void widen_to_f32(Stream, const BF16*, float*, int64_t) {}
inline void sum_parts(Stream, DType, const void*, int, int64_t, void*) {}
#endif

}  // namespace rwkv::cuda
