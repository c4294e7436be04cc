#include "kernels/cuda/decode/step_launch.cuh"

namespace rwkv::cuda::decode {

template void launch_step<__half>(Context&, const Args&, bool, int);

}  // namespace rwkv::cuda::decode
