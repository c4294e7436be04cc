#include "kernels/wkv/cpu/wkv7_chunk_impl.h"

namespace rwkv::cpu {

const WkvKernel kWkv7CpuChunk16 = chunk_kernel<16>("wkv7.cpu.chunk16.f32", "note16");

}  // namespace rwkv::cpu
