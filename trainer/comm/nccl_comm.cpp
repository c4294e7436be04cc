#include "trainer/comm/nccl_comm.h"

#include <cuda_runtime_api.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/ops/exchange.h"
#include "trainer/comm/copy_engines.h"
#include "trainer/comm/nccl_library.h"
#include "trainer/memory.h"

namespace rwkv {
namespace {

void check_cuda(cudaError_t error, const char* what) {
  RWKV_CHECK(error == cudaSuccess, DeviceError, what, ": ", cudaGetErrorName(error), " (",
             cudaGetErrorString(error), ")");
}

/// Which GPU of which machine, and what no other GPU has.
struct Gpu {
  int device = 0;
  bool copies = false;  ///< this rank is asked to use copy engines, and its library has them
  MachineName machine{};
  std::array<char, 16> uuid{};
  std::array<char, 32> bus{};  ///< where it is in its machine
};

/// Whether this rank's GPU reaches that of another rank. Launchers may show every rank its own GPU
/// alone: nothing can be asked about the other one then, and it counts as out of reach.
bool reaches(const Gpu& mine, const Gpu& other) {
  int there = 0, can = 0;
  if (mine.machine != other.machine) return false;
  if (cudaDeviceGetByPCIBusId(&there, other.bus.data()) == cudaSuccess &&
      cudaDeviceCanAccessPeer(&can, mine.device, there) == cudaSuccess)
    return can != 0;
  cudaGetLastError();  // the next one who asks would take it for their own
  return false;
}

/// From CUDA 12.5 on NCCL uses copy engines.
bool driver_has_copies() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess && version >= 12050;
}

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
  check_cuda(cudaDeviceGetPCIBusId(gpu.bus.data(), static_cast<int>(gpu.bus.size()), gpu.device),
             "asking where the GPU is");
  gpu.machine = this_machine();
  std::memcpy(gpu.uuid.data(), properties.uuid.bytes, gpu.uuid.size());
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
  NcclCommunicator(std::unique_ptr<HostGroup> group, int local_rank, bool copy_engines)
      : group_(std::move(group)) {
    Gpu gpu;
    ncclUniqueId id{};
    // What NCCL finds in this variable was the address of our own meeting point.
    ::unsetenv("NCCL_COMM_ID");
    agree(group_.get(), [&] {
      api_ = load_nccl();
      gpu = choose_gpu(rank(), local_rank);
      if (rank() == 0) check(api_.get_unique_id(&id), "making an identifier");
      // After NCCL's first call, which on rank 0 has put what its files (/etc/nccl.conf) say into
      // the variables.
      gpu.copies = copy_engines && api_.has_copies() && driver_has_copies() &&
                   copies_allowed(version(), size(), [](const char* name) {
                     const char* value = std::getenv(name);
                     return std::string(value == nullptr ? "" : value);
                   });
    });
    std::vector<Gpu> all(static_cast<size_t>(size()));
    group_->all_gather(&gpu, sizeof gpu, all.data());
    agree(group_.get(), [&] {
      for (int r = 0; r < rank(); ++r) {
        const Gpu& other = all[static_cast<size_t>(r)];
        RWKV_CHECK(other.machine != gpu.machine || other.uuid != gpu.uuid, DeviceError, "ranks ", r,
                   " and ", rank(), " have the same GPU; start one rank per GPU");
      }
    });
    // All ranks must open the same kind of communicator.
    const bool mine = std::ranges::all_of(all, [&](const Gpu& other) {
      return other.copies && (&other == &all[static_cast<size_t>(rank())] || reaches(gpu, other));
    });
    std::vector<char> everybody(all.size());
    group_->all_gather(&mine, 1, everybody.data());
    copies_ = std::ranges::all_of(everybody, [](char yes) { return yes != 0; });
    group_->broadcast(&id, sizeof id);
    // The other ranks wait within NCCL for one that fails here: they cannot agree on an error.
    abort_on_error(group_.get(), [&] {
      watch_ = std::make_unique<NcclWatch>(api_, *group_);
      check(copies_ ? api_.init_rank_with_copies(&comm_, size(), id, rank())
                    : api_.comm_init_rank(&comm_, size(), id, rank()),
            "connecting the ranks");
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
    const int v = version();
    return str("NCCL ", v / 10000, ".", v / 100 % 100, ".", v % 100);
  }

  bool uses_copy_engines() const override { return copies_; }
  Arena allocate(size_t bytes, std::string purpose) override {
    bytes = align_up(bytes);
    if (!copies_ || bytes == 0) return Communicator::allocate(bytes, std::move(purpose));
    void* p = nullptr;
    const ncclResult_t result = api_.allocate(&p, bytes);
    if (result != ncclSuccess) {
      cudaGetLastError();
      size_t free_bytes = 0, total = 0;
      cudaMemGetInfo(&free_bytes, &total);
      throw DeviceError(str("allocating ", format_bytes(bytes), " for ", purpose,
                            " on the GPU by NCCL: ", api_.get_error_string(result), "; ",
                            format_bytes(free_bytes), " of ", format_bytes(total),
                            " are free; use a smaller batch or context, train.grad_checkpointing="
                            "block, or dist.copy_engines=false"));
    }
    Arena arena(Device::kCuda, static_cast<std::byte*>(p), bytes, std::move(purpose),
                [this](std::byte* gone) { release(gone); });
    windows_.push_back({arena.data(), bytes, nullptr});
    check_cuda(cudaMemset(p, 0, bytes), "clearing memory");
    check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "clearing memory");
    return arena;
  }

  void reduce_scatter(const void* in, void* out, int64_t count, DType type) override {
    add_windows();
    check(api_.reduce_scatter(in, out, static_cast<size_t>(count), nccl_type(type), ncclSum, comm_,
                              stream_),
          "reduce-scatter");
  }
  void reduce_scatter_by_copies(const void* in, void* scratch, void* out, int64_t count,
                                DType type) override {
    RWKV_ASSERT(copies_ && count % 8 == 0, count, " elements");
    add_windows();
    check(api_.all_to_all(in, scratch, static_cast<size_t>(count), nccl_type(type), comm_, stream_),
          "all-to-all");
    sums_.push_back({scratch, out, count, type});
    if (!grouped_) add_parts();
  }
  void all_gather(const void* in, void* out, int64_t count, DType type) override {
    add_windows();
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
  void begin_group() override {
    add_windows();
    check(api_.group_start(), "group start");
    grouped_ = true;
  }
  void end_group() override {
    grouped_ = false;
    check(api_.group_end(), "group end");
    add_parts();
  }

 private:
  int version() const {
    int v = 0;
    api_.get_version(&v);
    return v;
  }

  struct Window {
    std::byte* data;
    size_t bytes;
    void* handle;  ///< null: the others do not know it yet
  };
  struct Sum {
    const void* parts;
    void* out;
    int64_t count;
    DType type;
  };

  void add_windows() {
    for (; known_windows_ < windows_.size(); ++known_windows_) {
      Window& w = windows_[known_windows_];
      check(api_.add_window(comm_, w.data, w.bytes, &w.handle),
            "registering memory for copy engines (dist.copy_engines=false does without)");
    }
  }

  void release(std::byte* p) noexcept {
    cudaDeviceSynchronize();  // as cudaFree does
    const auto w = std::ranges::find(windows_, p, &Window::data);
    if (w != windows_.end()) {
      if (w->handle != nullptr) api_.remove_window(comm_, w->handle);
      if (w - windows_.begin() < static_cast<std::ptrdiff_t>(known_windows_)) --known_windows_;
      windows_.erase(w);
    }
    api_.release(p);
  }

  /// What copies have brought, once they are queued.
  void add_parts() {
    for (const Sum& s : sums_) sum_parts(stream_, s.type, s.parts, size(), s.count, s.out);
    sums_.clear();
  }

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
  bool copies_ = false, grouped_ = false;
  std::vector<Window> windows_;  ///< in the order of allocation, the same on all ranks
  size_t known_windows_ = 0;
  std::vector<Sum> sums_;  ///< of the open group
  std::unique_ptr<NcclWatch> watch_;
};

}  // namespace

bool has_nccl() {
  return true;
}

std::unique_ptr<Communicator> open_nccl_communicator(std::unique_ptr<HostGroup> group,
                                                     int local_rank, bool copy_engines) {
  return std::make_unique<NcclCommunicator>(std::move(group), local_rank, copy_engines);
}

}  // namespace rwkv
