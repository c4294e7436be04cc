#pragma once
/// kernels/wkv/dither.h and binary16 multiply-adds as the GPU computes them.

#include <cstdint>
#include <vector>

namespace rwkv::test {

struct DitherOnDevice {
  std::vector<float> rotator, dithered, plain;  ///< of each (w_logit, phase)
  std::vector<uint16_t> fma;                    ///< of each (a, b, c), by the hardware
};

/// Throws std::runtime_error on a CUDA error.
DitherOnDevice dither_on_device(const std::vector<float>& w_logit,
                                const std::vector<uint32_t>& phase, const std::vector<uint16_t>& a,
                                const std::vector<uint16_t>& b, const std::vector<uint16_t>& c);

}  // namespace rwkv::test
