// Builds without NCCL or CUDA.

#include "trainer/comm/nccl_comm.h"

namespace rwkv {

bool has_nccl() {
  return false;
}

std::unique_ptr<Communicator> open_nccl_communicator(std::unique_ptr<HostGroup>, int, bool) {
  RWKV_ASSERT(has_nccl(), "this build has no NCCL");
  return nullptr;
}

}  // namespace rwkv
