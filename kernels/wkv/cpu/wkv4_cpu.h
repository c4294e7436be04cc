#pragma once
/// CPU variants of WKV-4, fp32, any number of tokens and channels. Deterministic for any number of
/// threads.

#include "kernels/wkv/wkv.h"

namespace rwkv::cpu {

extern const WkvKernel kWkv4CpuSerial;
extern const WkvKernel kWkv4CpuScan;
extern const WkvKernel kWkv4CpuCumsum;
extern const WkvKernel kWkv4CpuCumsumNaive;

}  // namespace rwkv::cpu
