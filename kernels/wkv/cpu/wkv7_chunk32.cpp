#include "kernels/wkv/cpu/wkv7_chunk_impl.h"

namespace rwkv::cpu {

constinit const WkvKernel kWkv7CpuChunk32 =
    chunk_kernel<32>("wkv7.cpu.chunk32.f32", "half the saved state of chunk16");

}  // namespace rwkv::cpu
