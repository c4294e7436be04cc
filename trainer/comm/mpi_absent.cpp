// Builds without MPI.

#include "trainer/comm/mpi_comm.h"

namespace rwkv {
namespace {

[[noreturn]] void no_mpi() {
  throw ConfigError(
      "starting ranks: this build has no MPI, which mpirun, srun --mpi=pmix and CPU ranks need; "
      "build with an MPI library (Debian/Ubuntu: libopenmpi-dev)");
}

}  // namespace

bool has_mpi() {
  return false;
}

std::unique_ptr<HostGroup> open_mpi_group(int*) {
  no_mpi();
}

std::unique_ptr<Communicator> open_mpi_communicator(std::unique_ptr<HostGroup>) {
  no_mpi();
}

}  // namespace rwkv
