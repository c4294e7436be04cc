#pragma once
/// The CUDA variants of WKV-4 as entries of the registry. Builds without CUDA have none.

#include "kernels/wkv/wkv.h"

namespace rwkv::cuda {

extern const WkvKernel kWkv4SerialBF16;
extern const WkvKernel kWkv4SerialF32;
extern const WkvKernel kWkv4ScanBF16;
extern const WkvKernel kWkv4ScanF32;
extern const WkvKernel kWkv4CumsumBF16;
extern const WkvKernel kWkv4CumsumF32;
extern const WkvKernel kWkv4CumsumNaiveBF16;
extern const WkvKernel kWkv4CumsumNaiveF32;

}  // namespace rwkv::cuda
