#pragma once
/// The functions of NCCL that we use, from the library that is installed. Only nccl_*.cpp include
/// this.

#include <nccl.h>

#include <cstddef>

namespace rwkv {

struct Nccl {
  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRank) comm_init_rank;
  decltype(&ncclCommDestroy) comm_destroy;
  decltype(&ncclCommGetAsyncError) get_async_error;
  decltype(&ncclGetErrorString) get_error_string;
  decltype(&ncclGetLastError) get_last_error;
  decltype(&ncclReduceScatter) reduce_scatter;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclBroadcast) broadcast;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;

  /// Copy engines: NCCL 2.28, here and where it was compiled. Without it the functions below return
  /// ncclInvalidUsage.
  bool has_copies() const { return mem_alloc_ != nullptr; }
  /// As comm_init_rank; copy engines do what they can, with memory that is registered.
  ncclResult_t init_rank_with_copies(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) const;
  ncclResult_t allocate(void** p, size_t bytes) const;
  ncclResult_t release(void* p) const;
  /// A collective. All ranks register the same sizes in the same order.
  ncclResult_t add_window(ncclComm_t comm, void* p, size_t bytes, void** window) const;
  ncclResult_t remove_window(ncclComm_t comm, void* window) const;
  ncclResult_t all_to_all(const void* in, void* out, size_t count, ncclDataType_t type,
                          ncclComm_t comm, void* stream) const;

 private:
  friend Nccl load_nccl();
  /// Of later versions than the others: null where one of them is missing.
  void *mem_alloc_, *mem_free_, *window_register_, *window_deregister_, *init_rank_config_,
      *all_to_all_;
};

/// Throws DeviceError if there is no library or it lacks one of the functions that all versions
/// have.
Nccl load_nccl();

}  // namespace rwkv
