#pragma once
/// How a process learns that it is one of several ranks, and ranks on this machine without a
/// launcher.

#include <functional>
#include <memory>
#include <string>

#include "trainer/comm/comm.h"

namespace rwkv {

/// What started this process.
struct Launch {
  enum class Kind {
    kSingle,  ///< one process
    kMpi,     ///< mpirun, srun --mpi=pmix, ...: MPI knows ranks and addresses
    kTcp,     ///< variables or --gpus: ranks meet at an address
  };
  Kind kind = Kind::kSingle;
  int rank = 0, size = 1;   ///< kMpi: MPI knows
  int local_rank = 0;       ///< among the ranks of this machine: which GPU
  std::string address;      ///< kTcp: of rank 0
  int port = 0;             ///< kTcp
  int listening_fd = -1;    ///< kTcp, rank 0 of --gpus: a socket that listens already
  std::string job;          ///< kTcp: what all ranks of a job know, and no others if it is a secret
  std::string job_name;     ///< kTcp: what messages call the job
  std::string description;  ///< "mpirun", "RANK and WORLD_SIZE", ...
};

/// From the environment: RANK and WORLD_SIZE (both, more than one), LOCAL_RANK, MASTER_ADDR and
/// MASTER_PORT, as torchrun and Kubernetes operators set them (NCCL_COMM_ID=HOST:PORT may stand for
/// the last two); else MPI's own variables; else SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID with
/// MASTER_ADDR, which a build without MPI prefers to MPI's variables. The job is what
/// RWKV_JOB_TOKEN says, else the number that SLURM, torchrun, PBS or LSF gave it, and the port.
/// Throws ConfigError for incomplete or contradicting ones. `get` reads a variable: empty if not
/// set.
Launch detect_launch(const std::function<std::string(const char*)>& get);
Launch detect_launch();

/// Forks `count` local ranks and, in each of them, returns its Launch. In the parent it returns
/// only when all have ended, with `exit_code` set: what the parent should end with. SIGTERM, SIGINT
/// and SIGHUP go on to the ranks, also those that come while ranks are being started; they hold
/// them (hold_signals) until their group or StopSignals takes them. If one of them dies the parent
/// names it, and ends the others when they do not end by themselves. Call before any thread or
/// device exists.
Launch fork_local_ranks(int count, const std::string& program, int* exit_code);

/// The ranks of a program.
class RankSession {
 public:
  /// Meets the other ranks; waits for those that are not there yet, up to two minutes. Throws as
  /// meet_ranks.
  explicit RankSession(const Launch& launch);
  int rank() const { return group() == nullptr ? 0 : group()->rank(); }
  int size() const { return group() == nullptr ? 1 : group()->size(); }
  /// Null for a single process.
  HostGroup* group() const { return comm_ ? &comm_->group() : group_.get(); }
  /// Connects the devices of all ranks; null for a single process. CPU ranks need MPI. CUDA: makes
  /// GPU number local_rank current, or the only one that is visible, and refuses GPUs that two
  /// ranks share. Copy engines as open_nccl_communicator. All ranks call. Throws as agree().
  Communicator* connect(Device device, bool copy_engines = true);

 private:
  Launch launch_;
  std::unique_ptr<HostGroup> group_;
  std::unique_ptr<Communicator> comm_;
};

/// Runs `body` in this process and all ranks that were started with it; with gpus > 1 it starts so
/// many local ones. Without MPI a signal that body has no StopSignals for ends all of them, with
/// one message and 128 + signal. What body throws on one rank ends all of them, with one message.
/// Returns what the process should end with. `program` is for messages.
int run_ranks(int gpus, const std::string& program, const std::function<int(RankSession&)>& body);

}  // namespace rwkv
