#pragma once
/// The lambda chain alone for heads of 64, with two warpgroups per head (as in the forward).

#include "kernels/wkv/cuda/wkv7_chunk_backward.cuh"
#include "kernels/wkv/cuda/wkv7_chunk_forward_pair.cuh"

namespace rwkv::cuda::chunk {

/// In the maps, dy stands where v does.
template <int kN>
__global__ void __launch_bounds__(256, 2)
    pair_lambda_kernel(const BackwardParams p, const __grid_constant__ ForwardMaps maps) {
  extern __shared__ __align__(1024) uint4 memory[];
  PairShared& shared = *reinterpret_cast<PairShared*>(memory);
  make_pair_barriers(shared);
  const LambdaWalk walk(p);
  const PairPlace<-1> at{walk.last - 1, walk.last - walk.first, walk.head % p.heads * 64,
                         walk.head / p.heads};
  if (threadIdx.x < 128) {
    prepare_steps<true, false, true>(at, p.tokens, maps, shared);
    return;
  }
  const Chain<64> chain;
  const uint32_t own = tile<64>(chain.lanes.across, warp_in_group<4>());
  StateRows<64> lambda = {};
  walk.begin(p, lambda);
  for (int n = 0; n < at.count; ++n) {
    const int slot = n & 1;
    await_step<true>(shared, n);
    const Tilde tilde = pair_tilde(shared, slot);
#pragma unroll 1
    for (int c = 1; c >= 0; --c) {
      const auto rows = static_cast<uint32_t>(c * kChunk * 128);
      float unused[2][4];
      Frag l[4];
      step_lambda<false, 64>(chain, lambda,
                             load_frag_t(shared_address(shared.v[slot]) + rows + own), tilde, rows,
                             shared_address(shared.small[slot]) + c * kSmalls * kSmallBytes,
                             shared.end[slot] + c * 64, 0, unused, l, [] {});
    }
    release_step(at.count, n);
    walk.end(p, lambda, at.step(n));
  }
}

template <int kN>
cudaError_t launch_pair_lambda(const BackwardParams& p, dim3 grid, int batch, cudaStream_t stream) {
  ForwardMaps maps{};
  CUtensorMap* const to[] = {&maps.r, &maps.w, &maps.a, &maps.b, &maps.v};
  const __nv_bfloat16* const data[] = {p.in.r, p.in.w, p.in.a, p.in.b, p.dy};
  for (int i = 0; i < 5; ++i)
    if (const cudaError_t e = describe_vector(*to[i], const_cast<__nv_bfloat16*>(data[i]), batch,
                                              p.tokens, p.heads * 64, kStep);
        e != cudaSuccess)
      return e;
  return launch(pair_lambda_kernel<kN>, grid, 256, sizeof(PairShared), false, stream, p, maps);
}

}  // namespace rwkv::cuda::chunk
