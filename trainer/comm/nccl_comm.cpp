#include "trainer/comm/nccl_comm.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

namespace rwkv {
namespace {

/// The functions that we use, from the library that is installed.
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
};

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
  return n;
}

void check_cuda(cudaError_t error, const char* what) {
  RWKV_CHECK(error == cudaSuccess, DeviceError, what, ": ", cudaGetErrorName(error), " (",
             cudaGetErrorString(error), ")");
}

/// Which GPU of this machine, and a name for it that no other GPU has.
struct Gpu {
  int device = 0;
  std::array<char, 128> identity{};
};

Gpu choose_gpu(int rank, int local_rank) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  RWKV_CHECK(error == cudaSuccess && count > 0, DeviceError, "looking for GPUs: found none (",
             cudaGetErrorString(error), ")");
  // Launchers that give every rank a GPU of its own show it as the only one.
  RWKV_CHECK(count == 1 || local_rank < count, DeviceError, "rank ", rank, " is number ",
             local_rank, " on its machine, which has ", count, " GPUs; start one rank per GPU");
  Gpu gpu;
  gpu.device = count == 1 ? 0 : local_rank;
  check_cuda(cudaSetDevice(gpu.device), "choosing a GPU");
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, gpu.device), "asking for the GPU's properties");
  gethostname(gpu.identity.data(), 64);
  char* at = gpu.identity.data() + std::strlen(gpu.identity.data());
  *at++ = ' ';
  std::memcpy(at, properties.uuid.bytes, sizeof properties.uuid.bytes);
  return gpu;
}

/// When NCCL reports a failure it may be that a rank has died: the group, which notices that a
/// little later, knows which one. It gets so long to end this process with a better message.
constexpr std::chrono::seconds kGroupNoticesWithin{3};
/// NCCL's start takes seconds; ranks that do not reach each other wait in it for ever.
constexpr std::chrono::seconds kConnectsWithin{300};

bool may_be_a_dead_rank(ncclResult_t result) {
  return result == ncclRemoteError || result == ncclSystemError;
}

/// A thread that asks NCCL for errors of what runs in the background (a link fails, a proxy thread
/// cannot go on), for which collectives wait for ever. Ends all ranks then; the driver removes the
/// kernels that wait. (ncclCommAbort would make them return first: the main thread then takes what
/// lies in their memory for gradients, and may write a checkpoint of it.)
class NcclWatch {
 public:
  NcclWatch(const Nccl& api, HostGroup& group)
      : api_(api), group_(group), thread_([this] { watch(); }) {}
  ~NcclWatch() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  NcclWatch(const NcclWatch&) = delete;
  NcclWatch& operator=(const NcclWatch&) = delete;

  void connected(ncclComm_t comm) {
    const std::lock_guard lock(mutex_);
    comm_ = comm;
  }

 private:
  void watch() {
    sigset_t all;  // signals are the main thread's
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    const auto begin = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, std::chrono::milliseconds(200), [&] { return done_; })) {
      if (comm_ == nullptr) {
        if (std::chrono::steady_clock::now() - begin < kConnectsWithin) continue;
        lock.unlock();
        group_.abort(str("NCCL on rank ", group_.rank(), " has not connected the ranks within ",
                         kConnectsWithin.count(),
                         " s; NCCL_DEBUG=INFO shows what it tries (NCCL_SOCKET_IFNAME chooses ",
                         "the network)"),
                     DeviceError("").exit_code());
      }
      ncclResult_t state = ncclSuccess;
      ncclResult_t result = api_.get_async_error(comm_, &state);
      if (result == ncclSuccess) result = state;
      if (result == ncclSuccess || result == ncclInProgress) continue;
      if (may_be_a_dead_rank(result) &&
          changed_.wait_for(lock, kGroupNoticesWithin, [&] { return done_; }))
        return;
      const char* detail = api_.get_last_error(comm_);
      lock.unlock();
      group_.abort(str("NCCL on rank ", group_.rank(),
                       " reports, in the background: ", api_.get_error_string(result),
                       detail != nullptr && *detail != '\0' ? str(" (", detail, ")") : "",
                       "; --resume continues from the last checkpoint"),
                   DeviceError("").exit_code());
    }
  }

  const Nccl& api_;
  HostGroup& group_;
  std::mutex mutex_;
  std::condition_variable changed_;
  ncclComm_t comm_ = nullptr;
  bool done_ = false;
  std::thread thread_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<HostGroup> group, int local_rank) : group_(std::move(group)) {
    Gpu gpu;
    ncclUniqueId id{};
    // What NCCL finds in this variable was the address of our own meeting point.
    ::unsetenv("NCCL_COMM_ID");
    agree(group_.get(), [&] {
      api_ = load_nccl();
      gpu = choose_gpu(rank(), local_rank);
      if (rank() == 0) check(api_.get_unique_id(&id), "making an identifier");
    });
    std::vector<std::array<char, 128>> all(static_cast<size_t>(size()));
    group_->all_gather(gpu.identity.data(), sizeof gpu.identity, all.data());
    agree(group_.get(), [&] {
      for (int r = 0; r < rank(); ++r)
        RWKV_CHECK(all[static_cast<size_t>(r)] != gpu.identity, DeviceError, "ranks ", r, " and ",
                   rank(), " have the same GPU; start one rank per GPU");
    });
    group_->broadcast(&id, sizeof id);
    // The other ranks wait within NCCL for one that fails here: they cannot agree on an error.
    abort_on_error(group_.get(), [&] {
      watch_ = std::make_unique<NcclWatch>(api_, *group_);
      check(api_.comm_init_rank(&comm_, size(), id, rank()), "connecting the ranks");
      watch_->connected(comm_);
      int least = 0, greatest = 0;
      check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities");
      check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest),
                 "making the stream of the collectives");
    });
  }

  ~NcclCommunicator() override {
    if (stream_ != nullptr) {
      cudaStreamSynchronize(stream_);
      cudaStreamDestroy(stream_);
    }
    watch_.reset();
    if (comm_ != nullptr) api_.comm_destroy(comm_);
  }

  Device device() const override { return Device::kCuda; }
  HostGroup& group() const override { return *group_; }
  Stream stream() const override { return stream_; }
  std::string description() const override {
    int v = 0;
    api_.get_version(&v);
    return str("NCCL ", v / 10000, ".", v / 100 % 100, ".", v % 100);
  }

  void reduce_scatter(const void* in, void* out, int64_t count, DType type) override {
    check(api_.reduce_scatter(in, out, static_cast<size_t>(count), nccl_type(type), ncclSum, comm_,
                              stream_),
          "reduce-scatter");
  }
  void all_gather(const void* in, void* out, int64_t count, DType type) override {
    check(api_.all_gather(in, out, static_cast<size_t>(count), nccl_type(type), comm_, stream_),
          "all-gather");
  }
  void all_reduce(void* data, int64_t count) override {
    check(api_.all_reduce(data, data, static_cast<size_t>(count), ncclFloat32, ncclSum, comm_,
                          stream_),
          "all-reduce");
  }
  void broadcast(void* data, int64_t count, DType type) override {
    check(
        api_.broadcast(data, data, static_cast<size_t>(count), nccl_type(type), 0, comm_, stream_),
        "broadcast");
  }
  void begin_group() override { check(api_.group_start(), "group start"); }
  void end_group() override { check(api_.group_end(), "group end"); }

 private:
  static ncclDataType_t nccl_type(DType type) {
    switch (type) {
      case DType::kF32:
        return ncclFloat32;
      case DType::kBF16:
        return ncclBfloat16;
      case DType::kI8:
        return ncclInt8;
      default:
        throw InternalError(str("collectives know no ", dtype_name(type)));
    }
  }

  void check(ncclResult_t result, const char* what) const {
    if (result == ncclSuccess) return;
    if (may_be_a_dead_rank(result)) std::this_thread::sleep_for(kGroupNoticesWithin);
    const char* detail = api_.get_last_error(comm_);
    throw DeviceError(str("NCCL, ", what, ", rank ", rank(), ": ", api_.get_error_string(result),
                          detail != nullptr && *detail != '\0' ? str(" (", detail, ")") : "",
                          "; NCCL_DEBUG=INFO tells more; --resume continues from the last "
                          "checkpoint"));
  }

  Nccl api_{};
  std::unique_ptr<HostGroup> group_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<NcclWatch> watch_;
};

}  // namespace

bool has_nccl() {
  return true;
}

std::unique_ptr<Communicator> open_nccl_communicator(std::unique_ptr<HostGroup> group,
                                                     int local_rank) {
  return std::make_unique<NcclCommunicator>(std::move(group), local_rank);
}

}  // namespace rwkv
