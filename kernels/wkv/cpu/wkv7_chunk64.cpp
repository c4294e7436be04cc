#include "kernels/wkv/cpu/wkv7_chunk_impl.h"

namespace rwkv::cpu {

constinit const WkvKernel kWkv7CpuChunk64 =
    chunk_kernel<64>("wkv7.cpu.chunk64.f32", "a quarter of the saved state of chunk16");

}  // namespace rwkv::cpu
