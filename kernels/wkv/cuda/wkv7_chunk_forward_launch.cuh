#pragma once
/// Launches the chunked WKV-7 forward.

#include "kernels/wkv/cuda/wkv7_chunk_forward_pair.cuh"
#include "kernels/wkv/cuda/wkv7_chunk_head.h"

namespace rwkv::cuda::chunk {

template <int kN, class E>
cudaError_t launch_forward(const ForwardParams& p, const Maps<kN>& maps, dim3 grid,
                           int multiprocessors, bool overlap, cudaStream_t stream) {
  using Sizes = Head<kN>;
  const int blocks = static_cast<int>(grid.x * grid.y);
  if constexpr (Sizes::kGroup) {
    if (blocks <= kPairs * multiprocessors) {
      const auto kernel =
          blocks <= multiprocessors ? pair_forward_kernel<kN, 1, E> : pair_forward_kernel<kN, 2, E>;
      return launch(kernel, grid, 256, sizeof(PairShared), overlap, stream, p, maps);
    }
  }
  const auto kernel = grid.y > 1 || blocks <= Sizes::kForwardFew * multiprocessors
                          ? forward_kernel<kN, Sizes::kForwardFew, E>
                          : forward_kernel<kN, Sizes::kForwardMany, E>;
  return launch(kernel, grid, Sizes::kThreads, sizeof(ForwardShared<kN>), overlap, stream, p, maps);
}

template <int kN, class E>
cudaError_t launch_operators(const ForwardParams& p, const Maps<kN>& maps, dim3 grid,
                             int multiprocessors, cudaStream_t stream) {
  using Sizes = Head<kN>;
  const int blocks = static_cast<int>(grid.x * grid.y * grid.z);
  if constexpr (Sizes::kGroup) {
    if (blocks <= kPairs * multiprocessors)
      return launch(pair_operators_kernel<kN, 2, E>, grid, 256, sizeof(PairShared), false, stream,
                    p, maps);
  }
  return launch(operators_kernel<kN, Sizes::kForwardFew, E>, grid, Sizes::kThreads,
                sizeof(ForwardShared<kN>), false, stream, p, maps);
}

template <int kN, class E>
cudaError_t forward(const Wkv7Shape& shape, const Wkv7Forward& io, cudaStream_t stream) {
  const Plan plan(shape);
  // f16 too: with heads of 64, whose rows the copy engine moves, nobody looks at the type.
  static_assert(!kIsHalf<E> || Head<kN>::kGroup);
  const auto bf16 = [](const void* p) { return static_cast<const __nv_bfloat16*>(p); };
  ForwardParams p{};
  p.in = {bf16(io.r), bf16(io.w), bf16(io.k), bf16(io.v), bf16(io.a), bf16(io.b)};
  p.start = io.s0;
  p.y = static_cast<__nv_bfloat16*>(io.y);
  p.s_out = io.s_out;
  p.tokens = shape.tokens;
  p.heads = shape.heads;
  p.steps = plan.steps;
  p.segments = plan.segments;
  p.steps_per_segment = plan.steps_per_segment;
  const Memory memory(plan, io.saved, io.workspace);
  p.checkpoints = memory.checkpoints;
  const dim3 grid(static_cast<unsigned>(plan.streams), static_cast<unsigned>(plan.segments));
  Maps<kN> maps{};
  if (const cudaError_t e = describe_vectors(maps, p, shape.batch); e != cudaSuccess) return e;
  int multiprocessors = 0;
  if (const cudaError_t e = count_multiprocessors(multiprocessors); e != cudaSuccess) return e;
  if (plan.whole()) {
    p.segments = 1;
    p.steps_per_segment = plan.steps;
  } else if (plan.segments > 1) {
    p.operator_m = memory.operator_m;
    p.operator_n = memory.operator_n;
    if (const cudaError_t e =
            launch_operators<kN, E>(p, maps, dim3(grid.x, grid.y, 2), multiprocessors, stream);
        e != cudaSuccess)
      return e;
    if (const cudaError_t e = join_forward<kN>(plan, memory, io.s0, stream); e != cudaSuccess)
      return e;
    p.start = memory.operator_n;
  }
  return launch_forward<kN, E>(p, maps, dim3(grid.x, static_cast<unsigned>(p.segments)),
                               multiprocessors, p.segments > 1, stream);
}

}  // namespace rwkv::cuda::chunk
