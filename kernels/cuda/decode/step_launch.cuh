#pragma once
/// Launches of the kernel that decodes one token of one sequence.

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/cuda/decode/step_head.cuh"
#include "kernels/cuda/decode/step_products.cuh"
#include "kernels/cuda/decode/step_value.cuh"

namespace rwkv::cuda::decode {

/// Besides the threads that compute, a warpgroup: a warp for the stream, one for what else is read,
/// and two that only make it whole, since a warpgroup gives registers away together.
inline constexpr int kHelpers = 128;
/// Of a thread that helps and of one that computes. The launch comes with 96 for every thread.
inline constexpr int kHelperRegisters = 32, kRegisters = 112;
static_assert(kHelpers * kHelperRegisters + kThreads * kRegisters <= (kHelpers + kThreads) * 96);

template <class T, int kPairs, bool kHalfState>
__global__ void __launch_bounds__(kThreads + kHelpers, 1)
    step_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(128) std::byte shared[];
  int t;  // kept: to ask for it again and again is slow
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const Slots slots{base + static_cast<uint32_t>(args.ring_at), base, args.slots};
  Ranges& ranges = *reinterpret_cast<Ranges*>(shared + kRangesAt);
  make_ranges<T>(args.l, ranges, t);
  Sequence& sequence = *reinterpret_cast<Sequence*>(shared + kSequenceAt);
  if (t == kThreads) {
    make_barriers(slots);
    sequence.layer = 0;
  }
  __syncthreads();
  const int head = head_of_block(args.l);
  if (t < kThreads) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
    Step<T, kPairs, kHalfState>(args, shared, slots, ranges, head, t).run();
    return;
  }
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kHelperRegisters));
  if (t == kThreads) {
    const ValuePart value(args.l);
    produce<packs_of_row(kPairs, kPackOf<T>)>(
        slots,
        Cursor(args.l, ranges, args.weights, head, args.pass_bytes, value.at(args.l),
               args.stream_value && value.is_mine ? value.bytes(args.l) : 0),
        args.flight);
  } else if (t >= kThreads + 32 && t < kThreads + 64) {
    prefetch_layers<T, kHalfState>(args, ranges, sequence, head, t % 32);
  }
}

template <class T, int kPairs, bool kHalfState>
void launch_as(Context& ctx, const Args& args, int shared_bytes) {
  const auto stream = static_cast<cudaStream_t>(ctx.stream());
  const auto kernel = step_kernel<T, kPairs, kHalfState>;
  RWKV_CUDA(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.l.blocks));
  config.blockDim = dim3(kThreads + kHelpers);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &together;
  config.numAttrs = 1;
  RWKV_CUDA(cudaLaunchKernelEx(&config, kernel, args));
  RWKV_LAUNCHED("decode step", stream);
}

template <class T>
void launch_step(Context& ctx, const Args& args, bool half_state, int shared_bytes) {
  const int pairs = pairs_of_width(args.l.shape.width);
  const auto by_state = [&]<int kPairs>() {
    if (half_state)
      launch_as<T, kPairs, true>(ctx, args, shared_bytes);
    else
      launch_as<T, kPairs, false>(ctx, args, shared_bytes);
  };
  if (pairs == 1)
    by_state.template operator()<1>();
  else if (pairs == 2)
    by_state.template operator()<2>();
  else
    by_state.template operator()<4>();
}

}  // namespace rwkv::cuda::decode
