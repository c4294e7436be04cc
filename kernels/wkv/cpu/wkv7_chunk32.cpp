#include "kernels/wkv/cpu/wkv7_chunk_impl.h"

namespace rwkv::cpu {

const WkvKernel kWkv7CpuChunk32 = chunk_kernel<32>("wkv7.cpu.chunk32.f32", "note32");

}  // namespace rwkv::cpu
