#pragma once
/// CPU variants of WKV-4, fp32, any number of tokens and channels. Deterministic for any number of
/// threads.

#include "kernels/wkv/wkv.h"

namespace rwkv::cpu {

extern const WkvKernel kWkv4CpuSerial;

}  // namespace rwkv::cpu
