#pragma once
/// MPI: ranks of mpirun and srun, and the collectives of CPU ranks. In builds without MPI these
/// throw ConfigError.

#include <memory>

#include "trainer/comm/comm.h"

namespace rwkv {

/// This build knows MPI.
bool has_mpi();
/// Initialises MPI; finalised when the group goes. `local_rank` receives the rank within the
/// machine. Errors of MPI end the process, as MPI's default is.
std::unique_ptr<HostGroup> open_mpi_group(int* local_rank);
/// Collectives of CPU tensors over the group of open_mpi_group. Reductions exchange shards and add
/// them in the order of ranks, so that neither the algorithm nor the topology changes a bit.
std::unique_ptr<Communicator> open_mpi_communicator(std::unique_ptr<HostGroup> group);

}  // namespace rwkv
