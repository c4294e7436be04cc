#include "kernels/wkv/cpu/wkv7_chunk_impl.h"

namespace rwkv::cpu {

const WkvKernel kWkv7CpuChunk64 = chunk_kernel<64>("wkv7.cpu.chunk64.f32", "note64");

}  // namespace rwkv::cpu
