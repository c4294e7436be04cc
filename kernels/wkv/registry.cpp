#include "kernels/wkv/wkv.h"

namespace rwkv {

std::span<const WkvKernel* const> all_wkv_kernels() { return {}; }

}  // namespace rwkv
