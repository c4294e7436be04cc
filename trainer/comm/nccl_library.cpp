#include "trainer/comm/nccl_library.h"

#include <dlfcn.h>

#include <cstring>

#include "kernels/core/error.h"

namespace rwkv {

Nccl load_nccl() {
  constexpr const char* kLibrary = "libnccl.so.2";
  void* library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  RWKV_CHECK(library != nullptr, DeviceError, "starting GPU ranks: loading ", kLibrary, ": ",
             ::dlerror(), "; install NCCL or put its folder on LD_LIBRARY_PATH");
  Nccl n{};
  const auto find = [&](auto& function, const char* name) {
    void* at = ::dlsym(library, name);
    RWKV_CHECK(at != nullptr, DeviceError, "starting GPU ranks: ", kLibrary, " has no ", name);
    std::memcpy(&function, &at, sizeof at);
  };
  find(n.get_version, "ncclGetVersion");
  find(n.get_unique_id, "ncclGetUniqueId");
  find(n.comm_init_rank, "ncclCommInitRank");
  find(n.comm_destroy, "ncclCommDestroy");
  find(n.get_async_error, "ncclCommGetAsyncError");
  find(n.get_error_string, "ncclGetErrorString");
  find(n.get_last_error, "ncclGetLastError");
  find(n.reduce_scatter, "ncclReduceScatter");
  find(n.all_gather, "ncclAllGather");
  find(n.all_reduce, "ncclAllReduce");
  find(n.broadcast, "ncclBroadcast");
  find(n.group_start, "ncclGroupStart");
  find(n.group_end, "ncclGroupEnd");
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)
  int version = 0;
  if (n.get_version(&version) != ncclSuccess || version < NCCL_VERSION(2, 28, 0)) return n;
  bool all = true;
  const auto look = [&](void*& function, const char* name) {
    function = ::dlsym(library, name);
    all = all && function != nullptr;
  };
  look(n.mem_free_, "ncclMemFree");
  look(n.window_register_, "ncclCommWindowRegister");
  look(n.window_deregister_, "ncclCommWindowDeregister");
  look(n.init_rank_config_, "ncclCommInitRankConfig");
  look(n.all_to_all_, "ncclAlltoAll");
  look(n.mem_alloc_, "ncclMemAlloc");
  if (!all) n.mem_alloc_ = nullptr;
#endif
  return n;
}

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)

namespace {

/// `address` is what dlsym gave for a function of this type. (Its name as an argument would be a
/// symbol that nothing defines, unless the compiler removes it.)
template <class Function, class... Args>
ncclResult_t call(void* address, Args... args) {
  Function function = nullptr;
  std::memcpy(&function, &address, sizeof address);
  return function == nullptr ? ncclInvalidUsage : function(args...);
}

}  // namespace

ncclResult_t Nccl::init_rank_with_copies(ncclComm_t* comm, int ranks, ncclUniqueId id,
                                         int rank) const {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.CTAPolicy = NCCL_CTA_POLICY_ZERO;
  return call<decltype(&ncclCommInitRankConfig)>(init_rank_config_, comm, ranks, id, rank, &config);
}

ncclResult_t Nccl::allocate(void** p, size_t bytes) const {
  return call<decltype(&ncclMemAlloc)>(mem_alloc_, p, bytes);
}

ncclResult_t Nccl::release(void* p) const {
  return call<decltype(&ncclMemFree)>(mem_free_, p);
}

ncclResult_t Nccl::add_window(ncclComm_t comm, void* p, size_t bytes, void** window) const {
  ncclWindow_t w = nullptr;
  const ncclResult_t result = call<decltype(&ncclCommWindowRegister)>(
      window_register_, comm, p, bytes, &w, NCCL_WIN_COLL_SYMMETRIC);
  *window = w;
  return result;
}

ncclResult_t Nccl::remove_window(ncclComm_t comm, void* window) const {
  return call<decltype(&ncclCommWindowDeregister)>(window_deregister_, comm,
                                                   static_cast<ncclWindow_t>(window));
}

ncclResult_t Nccl::all_to_all(const void* in, void* out, size_t count, ncclDataType_t type,
                              ncclComm_t comm, void* stream) const {
  return call<decltype(&ncclAlltoAll)>(all_to_all_, in, out, count, type, comm,
                                       static_cast<cudaStream_t>(stream));
}

#else

ncclResult_t Nccl::init_rank_with_copies(ncclComm_t*, int, ncclUniqueId, int) const {
  return ncclInvalidUsage;
}
ncclResult_t Nccl::allocate(void**, size_t) const {
  return ncclInvalidUsage;
}
ncclResult_t Nccl::release(void*) const {
  return ncclInvalidUsage;
}
ncclResult_t Nccl::add_window(ncclComm_t, void*, size_t, void**) const {
  return ncclInvalidUsage;
}
ncclResult_t Nccl::remove_window(ncclComm_t, void*) const {
  return ncclInvalidUsage;
}
ncclResult_t Nccl::all_to_all(const void*, void*, size_t, ncclDataType_t, ncclComm_t, void*) const {
  return ncclInvalidUsage;
}

#endif

}  // namespace rwkv
