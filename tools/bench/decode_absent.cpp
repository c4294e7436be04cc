// rwkv-bench decode in builds without CUDA.

#include "kernels/core/error.h"
#include "tools/bench/decode.h"

namespace rwkv::bench {

int run_decode(const DecodeBenchOptions&) {
  throw DeviceError("rwkv-bench decode times GPU kernels, and this build has no CUDA");
}

}  // namespace rwkv::bench
