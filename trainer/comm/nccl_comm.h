#pragma once
/// NCCL: the collectives of GPU ranks. The library is loaded when the first communicator is opened,
/// so that programs start where it is not installed.

#include <memory>

#include "trainer/comm/comm.h"

namespace rwkv {

/// This build knows NCCL; one that does not must open no communicator.
bool has_nccl();
/// Makes GPU number `local_rank` current, or the only visible one, and connects all ranks of the
/// group. The collectives run on a stream of high priority, so that kernels of the model, which
/// fill the GPU, do not hold them up. Throws DeviceError on rank 0 (ReportedError elsewhere) if a
/// GPU is missing, two ranks share one, or NCCL fails. A thread asks NCCL for errors in the
/// background, five times a second, and ends all ranks with the cause.
/// Copy engines are used where all ranks pass `copy_engines`, run on one machine, see each other's
/// GPUs, which reach each other, and NCCL and its variables have nothing against it
/// (copy_engines.h).
std::unique_ptr<Communicator> open_nccl_communicator(std::unique_ptr<HostGroup> group,
                                                     int local_rank, bool copy_engines);

}  // namespace rwkv
