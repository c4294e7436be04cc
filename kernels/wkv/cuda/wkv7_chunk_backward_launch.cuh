#pragma once
/// Launches the chunked WKV-7 backward.

#include "kernels/wkv/cuda/wkv7_chunk_backward_group.cuh"
#include "kernels/wkv/cuda/wkv7_chunk_backward_pair.cuh"
#include "kernels/wkv/cuda/wkv7_chunk_head.h"

namespace rwkv::cuda::chunk {

template <int kN>
cudaError_t launch_lambda(const BackwardParams& p, dim3 grid, int batch, int multiprocessors,
                          cudaStream_t stream) {
  const int blocks = static_cast<int>(grid.x * grid.y);
  if constexpr (Head<kN>::kGroup)
    if (blocks <= kPairs * multiprocessors) return launch_pair_lambda<kN>(p, grid, batch, stream);
  return launch(operator_kernel<kN>, grid, Head<kN>::kThreads, sizeof(OperatorShared<kN>), false,
                stream, p);
}

template <int kN>
cudaError_t backward(const Wkv7Shape& shape, const Wkv7Backward& io, cudaStream_t stream) {
  using Sizes = Head<kN>;
  const Plan plan(shape);
  const auto bf16 = [](const void* p) { return static_cast<const __nv_bfloat16*>(p); };
  const auto out = [](void* p) { return static_cast<__nv_bfloat16*>(p); };
  const Memory memory(plan, const_cast<void*>(io.saved), io.workspace);
  BackwardParams p{};
  p.in = {bf16(io.r), bf16(io.w), bf16(io.k), bf16(io.v), bf16(io.a), bf16(io.b)};
  p.dy = bf16(io.dy);
  p.end_gradient = io.ds_out;
  p.checkpoints = memory.checkpoints;
  p.dr = out(io.dr);
  p.dw = out(io.dw);
  p.dk = out(io.dk);
  p.dv = out(io.dv);
  p.da = out(io.da);
  p.db = out(io.db);
  p.ds0 = io.ds0;
  p.add = io.add;
  p.has_s0 = io.has_s0;
  p.tokens = shape.tokens;
  p.heads = shape.heads;
  p.steps = plan.steps;
  p.segments = plan.segments;
  p.steps_per_segment = plan.steps_per_segment;
  const dim3 grid(static_cast<unsigned>(plan.streams), static_cast<unsigned>(plan.segments));
  int multiprocessors = 0;
  if (const cudaError_t e = count_multiprocessors(multiprocessors); e != cudaSuccess) return e;
  if (plan.segments > 1) {
    p.operator_q = memory.operator_n;
    p.whole = plan.whole();
    const dim3 walks(grid.x, p.whole ? 1 : grid.y - 1);
    if (const cudaError_t e = launch_lambda<kN>(p, walks, shape.batch, multiprocessors, stream);
        e != cudaSuccess)
      return e;
    if (!p.whole)
      if (const cudaError_t e = join_backward<kN>(plan, memory, io.ds_out, stream);
          e != cudaSuccess)
        return e;
    p.end_gradient = memory.operator_n;
  }
  const bool few = plan.streams * plan.segments <= Sizes::kBackwardFew * multiprocessors;
  if constexpr (Sizes::kGroup) {
    if (plan.piece() > 0) {
      p.queue = memory.queue;
      p.handed = memory.operator_n;
      p.steps_per_segment = plan.piece();
      p.segments = (plan.steps + plan.piece() - 1) / plan.piece();
      return launch_queue_backward<kN>(p, plan.streams, Memory::queue_bytes(plan), shape.batch,
                                       stream);
    }
    return launch_group_backward<kN>(p, grid, few, plan.segments > 1, shape.batch, stream);
  } else {
    const auto kernel =
        few ? backward_kernel<kN, Sizes::kBackwardFew> : backward_kernel<kN, Sizes::kBackwardMany>;
    return launch(kernel, grid, Sizes::kThreads, sizeof(BackwardShared<kN>), plan.segments > 1,
                  stream, p);
  }
}

}  // namespace rwkv::cuda::chunk
