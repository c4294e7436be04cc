// rwkv-bench prefill in builds without CUDA.

#include "kernels/core/error.h"
#include "tools/bench/prefill.h"

namespace rwkv::bench {

int run_prefill(const PrefillBenchOptions&) {
  throw DeviceError("rwkv-bench prefill times GPU kernels, and this build has no CUDA");
}

}  // namespace rwkv::bench
