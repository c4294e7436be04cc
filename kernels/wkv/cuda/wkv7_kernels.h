#pragma once
/// The CUDA variants as entries of the registry (kernels/wkv/wkv.h). Builds without CUDA have none.

#include "kernels/wkv/wkv.h"

namespace rwkv::cuda {

#if RWKV_HAVE_CUDA
extern const WkvKernel kWkv7Chunk16;     ///< wkv7.cuda.chunk16.bf16
extern const WkvKernel kWkv7Scan16;      ///< wkv7.cuda.scan16.bf16
extern const WkvKernel kWkv7SerialBF16;  ///< wkv7.cuda.serial.bf16
extern const WkvKernel kWkv7SerialF32;   ///< wkv7.cuda.serial.f32
// wkv7.cuda.fp16-dithered.bf16 and so on
extern const WkvKernel kWkv7Fp16DitheredBF16, kWkv7Fp16DitheredF32;
extern const WkvKernel kWkv7Fp16PlainBF16, kWkv7Fp16PlainF32;
#endif

}  // namespace rwkv::cuda
