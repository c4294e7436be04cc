#include "kernels/wkv/cpu/wkv7_chunk_impl.h"

namespace rwkv::cpu {

constinit const WkvKernel kWkv7CpuChunk16 =
    chunk_kernel<16>("wkv7.cpu.chunk16.f32", "least arithmetic; training at head size 64");

}  // namespace rwkv::cpu
