#pragma once
/// Ranks: the processes of one training run, one per GPU (or per CPU rank), and what they exchange.
///
/// Two planes. HostGroup moves a few bytes between processes (agreements, identifiers, states) and
/// notices when one of them dies. Communicator moves tensors, on a stream of its own on CUDA. Both
/// want every rank to make the same calls in the same order.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/core/dtype.h"
#include "kernels/core/error.h"

namespace rwkv {

/// Thrown on ranks other than 0 when rank 0 reports the error: ends them without a message.
class ReportedError : public Error {
 public:
  ReportedError(const std::string& message, int code) : Error(message), code_(code) {}
  int exit_code() const noexcept override { return code_; }

 private:
  int code_;
};

/// What rank 0 throws when ranks agreed that one of them failed: all of them end, in good order.
class AgreedError : public Error {
 public:
  AgreedError(const std::string& message, int code) : Error(message), code_(code) {}
  int exit_code() const noexcept override { return code_; }

 private:
  int code_;
};

/// Small blocking exchanges between the processes of a run. One thread uses it.
class HostGroup {
 public:
  virtual ~HostGroup() = default;
  int rank() const { return rank_; }
  int size() const { return size_; }

  /// out[r * bytes ...] = what rank r passed as `in`.
  virtual void all_gather(const void* in, size_t bytes, void* out) = 0;
  /// Every rank gets the bytes of rank 0.
  virtual void broadcast(void* data, size_t bytes) = 0;
  void barrier();
  /// The string of rank 0, whatever its length.
  std::string broadcast(const std::string& text);

  /// Ends all ranks with this exit code; rank 0 says why, if it can. Any thread. Does not return.
  /// Nothing is torn down before the process ends: a collective that were aborted in front of other
  /// threads would return to them, with sums that are none.
  [[noreturn]] virtual void abort(const std::string& cause, int exit_code) = 0;

 protected:
  HostGroup(int rank, int size) : rank_(rank), size_(size) {}

 private:
  int rank_, size_;
};

/// Collectives over tensors that live on `device()`. On CUDA calls are queued on stream(); on the
/// CPU they are done when they return. `count` is in elements of `type`; f32, bf16 and i8 (bytes,
/// where nothing is added) are known. Deterministic: the same calls give the same bits.
class Communicator {
 public:
  virtual ~Communicator() = default;
  int rank() const { return group().rank(); }
  int size() const { return group().size(); }
  virtual Device device() const = 0;
  virtual HostGroup& group() const = 0;
  virtual Stream stream() const { return nullptr; }
  /// "NCCL 2.28.3", "MPI (Open MPI 4.1.4)"
  virtual std::string description() const = 0;

  /// Copy engines move what lies in memory from allocate(), without multiprocessors: that of
  /// all_gather and reduce_scatter_by_copies. All ranks then record the same of these calls, and
  /// where one replays a recording all do, and where one calls all do: ranks wait for each other in
  /// different ways within recordings and outside.
  virtual bool uses_copy_engines() const { return false; }
  /// Zero-filled memory on device(), which the communicator must outlive. Every rank allocates the
  /// same sizes in the same order. Not a collective by itself: the next collective, which must not
  /// be recorded, tells the ranks of each other's memory. Throws DeviceError.
  virtual Arena allocate(size_t bytes, std::string purpose) {
    return Arena(device(), bytes, std::move(purpose));
  }

  /// Ranks that add on the host do so in memory of their own: from here on as much as reductions of
  /// up to `bytes` (size() * count elements) need; larger ones take more by themselves. Throws
  /// DeviceError.
  virtual void reserve_reductions(size_t) {}
  virtual size_t reduction_bytes() const { return 0; }  ///< how much of it there is

  /// out = sum over ranks of elements [rank * count, (rank + 1) * count) of `in`, which has
  /// size() * count of them; `out` may be that part of `in`. CPU: f32 sums in the order of ranks,
  /// rounded once at the end for bf16.
  virtual void reduce_scatter(const void* in, void* out, int64_t count, DType type) = 0;
  /// The same where uses_copy_engines(): they bring the parts to `scratch` (size() * count
  /// elements, for no other call of the group; it and `in` are from allocate()), where they are
  /// added as on the CPU. `count` is a multiple of 8.
  virtual void reduce_scatter_by_copies(const void* in, void* scratch, void* out, int64_t count,
                                        DType type);
  /// out[r * count ...] = what rank r passes as `in`, which may be that part of `out`.
  virtual void all_gather(const void* in, void* out, int64_t count, DType type) = 0;
  /// Sum over ranks of f32, in place.
  virtual void all_reduce(void* data, int64_t count) = 0;
  /// Every rank gets the elements of rank 0.
  virtual void broadcast(void* data, int64_t count, DType type) = 0;
  /// Calls between the two may be joined into one, and run in any order or at the same time.
  virtual void begin_group() {}
  virtual void end_group() {}
};

/// Runs `work` on every rank. If it throws rwkv::Error on any of them it throws on all: on rank 0
/// AgreedError with the message (naming the ranks, unless all say the same), elsewhere
/// ReportedError. `group` null: just runs it.
void agree(HostGroup* group, const std::function<void()>& work);

/// Runs `work`, in which ranks may wait for each other. What it throws on one of them ends all
/// ranks before the exception goes up and tears down what others still send to; only AgreedError
/// and ReportedError, which all ranks throw, go up. `group` null: just runs it.
void abort_on_error(HostGroup* group, const std::function<void()>& work);

/// "rank 1", "ranks 1, 3"; the first few of many.
std::string ranks_text(const std::vector<int>& ranks);

/// Throws AgreedError on rank 0 (ReportedError elsewhere) unless `value` is the same on all ranks,
/// naming `what` and the ranks that differ from rank 0.
void require_same(HostGroup& group, std::string_view what, const std::string& value);

}  // namespace rwkv
