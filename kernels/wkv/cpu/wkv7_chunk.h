#pragma once
/// "wkv7.cpu.chunk16.f32" and its relatives: the chunked form of WKV-7 (spec rwkv7 4.1-4.3) in
/// fp32, any number of tokens (the last chunk may be shorter), head sizes 32, 64, 128. They save
/// the state ahead of every chunk; the backward recomputes the rest. Deterministic for any number
/// of threads.

#include "kernels/wkv/wkv.h"

namespace rwkv::cpu {

extern const WkvKernel kWkv7CpuChunk16;
extern const WkvKernel kWkv7CpuChunk32;
extern const WkvKernel kWkv7CpuChunk64;

}  // namespace rwkv::cpu
