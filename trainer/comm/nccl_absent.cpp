// Builds without NCCL or CUDA.

#include "trainer/comm/nccl_comm.h"

namespace rwkv {

bool has_nccl() {
  return false;
}

std::unique_ptr<Communicator> open_nccl_communicator(std::unique_ptr<HostGroup>, int, bool) {
  throw ConfigError(
      "starting GPU ranks: this build has no NCCL; build where CUDA and nccl.h are found "
      "(Debian/Ubuntu: libnccl-dev)");
}

}  // namespace rwkv
