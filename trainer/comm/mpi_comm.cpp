#include "trainer/comm/mpi_comm.h"

#include <errno.h>
#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>

#include "kernels/core/bf16.h"

namespace rwkv {
namespace {

class MpiGroup final : public HostGroup {
 public:
  MpiGroup(int rank, int size) : HostGroup(rank, size) {}
  ~MpiGroup() override { MPI_Finalize(); }

  void all_gather(const void* in, size_t bytes, void* out) override {
    const int n = static_cast<int>(bytes);
    MPI_Allgather(in, n, MPI_BYTE, out, n, MPI_BYTE, MPI_COMM_WORLD);
  }

  void broadcast(void* data, size_t bytes) override {
    MPI_Bcast(data, static_cast<int>(bytes), MPI_BYTE, 0, MPI_COMM_WORLD);
  }

  [[noreturn]] void abort(const std::string& cause, int exit_code) override {
    // What fails everywhere is said once, by rank 0.
    constexpr unsigned kGraceSeconds = 2;
    if (rank() != 0) ::sleep(kGraceSeconds);
    std::fflush(stdout);
    std::fprintf(stderr, "%s: error: rank %d: %s\n", program_invocation_short_name, rank(),
                 cause.c_str());
    std::fflush(stderr);
    // MPI was started for one thread; from another one the launcher is left to end the rest.
    if (std::this_thread::get_id() == thread_) MPI_Abort(MPI_COMM_WORLD, exit_code);
    ::_exit(exit_code);
  }

 private:
  const std::thread::id thread_ = std::this_thread::get_id();
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(std::unique_ptr<HostGroup> group) : group_(std::move(group)) {}

  Device device() const override { return Device::kCpu; }
  HostGroup& group() const override { return *group_; }
  std::string description() const override {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(text, &length);
    const std::string all(text, static_cast<size_t>(length));
    return "MPI (" + all.substr(0, all.find(',')) + ")";
  }

  void reserve_reductions(size_t bytes) override {
    parts_ = Arena();  // not both at the same time
    parts_ = Arena(Device::kCpu, bytes, "what is added of all ranks");
  }
  size_t reduction_bytes() const override { return parts_.bytes(); }

  void reduce_scatter(const void* in, void* out, int64_t count, DType type) override {
    const auto bytes = static_cast<size_t>(count) * dtype_bytes(type);
    make_room(checked(bytes));
    MPI_Alltoall(in, checked(bytes), MPI_BYTE, parts_.data(), checked(bytes), MPI_BYTE,
                 MPI_COMM_WORLD);
    if (type == DType::kF32)
      add_f32(static_cast<float*>(out), count);
    else
      add_bf16(static_cast<BF16*>(out), count);
  }

  void all_gather(const void* in, void* out, int64_t count, DType type) override {
    const auto bytes = static_cast<size_t>(count) * dtype_bytes(type);
    auto* mine = static_cast<std::byte*>(out) + static_cast<size_t>(rank()) * bytes;
    const void* from = in == mine ? MPI_IN_PLACE : in;
    MPI_Allgather(from, checked(bytes), MPI_BYTE, out, checked(bytes), MPI_BYTE, MPI_COMM_WORLD);
  }

  void all_reduce(void* data, int64_t count) override {
    const int bytes = checked(static_cast<size_t>(count) * sizeof(float));
    make_room(bytes);
    MPI_Allgather(data, bytes, MPI_BYTE, parts_.data(), bytes, MPI_BYTE, MPI_COMM_WORLD);
    add_f32(static_cast<float*>(data), count);
  }

  void broadcast(void* data, int64_t count, DType type) override {
    MPI_Bcast(data, checked(static_cast<size_t>(count) * dtype_bytes(type)), MPI_BYTE, 0,
              MPI_COMM_WORLD);
  }

 private:
  static int checked(size_t bytes) {
    RWKV_CHECK(bytes <= static_cast<size_t>(std::numeric_limits<int>::max()), ConfigError,
               "exchanging ", bytes,
               " bytes in one MPI call: expected less than 2 GiB; CPU ranks "
               "are for smaller models");
    return static_cast<int>(bytes);
  }

  /// For so many bytes of every rank.
  void make_room(int bytes) {
    const size_t all = static_cast<size_t>(bytes) * static_cast<size_t>(size());
    if (parts_.bytes() < all) reserve_reductions(all);
  }

  /// out = sum of what lies in parts_, rank 0's first.
  void add_f32(float* out, int64_t count) const {
    const auto* parts = reinterpret_cast<const float*>(parts_.data());
    for (int64_t i = 0; i < count; ++i) {
      float sum = parts[i];
      for (int r = 1; r < size(); ++r) sum += parts[r * count + i];
      out[i] = sum;
    }
  }

  void add_bf16(BF16* out, int64_t count) const {
    const auto* parts = reinterpret_cast<const BF16*>(parts_.data());
    for (int64_t i = 0; i < count; ++i) {
      float sum = to_float(parts[i]);
      for (int r = 1; r < size(); ++r) sum += to_float(parts[r * count + i]);
      out[i] = to_bf16(sum);
    }
  }

  std::unique_ptr<HostGroup> group_;
  Arena parts_;
};

}  // namespace

bool has_mpi() {
  return true;
}

std::unique_ptr<HostGroup> open_mpi_group(int* local_rank) {
  int provided = 0, rank = 0, size = 1;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm machine = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, local_rank);
  MPI_Comm_free(&machine);
  return std::make_unique<MpiGroup>(rank, size);
}

std::unique_ptr<Communicator> open_mpi_communicator(std::unique_ptr<HostGroup> group) {
  return std::make_unique<MpiCommunicator>(std::move(group));
}

}  // namespace rwkv
