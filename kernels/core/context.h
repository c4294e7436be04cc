#pragma once
/// What every computing call is handed first: the device and its shared helpers.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/dtype.h"
#include "kernels/core/tensor.h"
#include "kernels/core/trace.h"

namespace rwkv {

/// A CUDA stream without CUDA's headers (cudaStream_t is a pointer).
using Stream = void*;

/// What a CUDA context owns; defined where CUDA is (core/cuda/cuda_state.h).
struct CudaState;

/// One per rank. Not thread-safe: one thread drives a context (kernels fork their own threads).
class Context {
 public:
  /// Throws DeviceError if this build has no such device.
  /// CUDA: uses the device that is current in the calling thread, on a stream of its own.
  explicit Context(Device device = Device::kCpu);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Device device() const { return device_; }
  Tracer& tracer() { return tracer_; }

  /// Makes sure that `workspace` can serve `bytes`. Called while planning, never in a step.
  void reserve_workspace(size_t bytes);
  /// Scratch memory for the kernel that is running; the next kernel reuses it. Contents undefined.
  /// Throws InternalError if it was not reserved: an op states its need in `Op::workspace_bytes`.
  std::byte* workspace(size_t bytes);
  size_t workspace_bytes() const { return workspace_.bytes(); }

  /// CUDA: where all kernels and copies of this context are queued. Null on the CPU.
  Stream stream() const { return stream_; }
  CudaState& cuda() const { return *cuda_; }  ///< CUDA contexts only
  /// CUDA: from now on lane(0 .. count - 1) exist: this context, and others on the same device with
  /// streams, workspaces (as large as this one's now) and handles of their own. They
  /// share the algorithms of products. Kernels of different lanes may run at the same time; who
  /// uses them orders them. Throws DeviceError.
  void open_lanes(int count);
  int lanes() const { return 1 + static_cast<int>(lanes_.size()); }
  Context& lane(int i) { return i == 0 ? *this : *lanes_[static_cast<size_t>(i - 1)]; }

  /// CUDA: work, of this context and its lanes, is recorded into a LaunchGraph and does not run.
  bool recording() const { return recording_; }

  /// Waits until everything queued so far is done. `why` is counted and traced: a step synchronises
  /// only where it says so. Nothing to do on the CPU.
  void synchronize(std::string_view why);
  uint64_t synchronizations() const { return synchronizations_; }

 private:
  friend class LaunchGraph;
  struct CudaDelete {
    void operator()(CudaState* state) const;
  };
  Device device_;
  std::unique_ptr<CudaState, CudaDelete> cuda_;
  Stream stream_ = nullptr;
  Tracer tracer_;
  Arena workspace_;
  std::vector<std::unique_ptr<Context>> lanes_;
  uint64_t synchronizations_ = 0;
  bool recording_ = false;
};

}  // namespace rwkv
