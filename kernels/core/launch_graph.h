#pragma once
/// Work recorded once and replayed with one call.

#include <cstddef>
#include <functional>

#include "kernels/core/context.h"

namespace rwkv {

/// A CUDA graph: what `work` queued on a context's stream, with its addresses and arguments as they
/// were. Replaying costs one call instead of one per kernel, and the device leaves less time
/// between them. Arguments that the host computes are frozen, so what changes must be in device
/// memory. Move-only. The memory that the work uses must stay where it is.
class LaunchGraph {
 public:
  LaunchGraph() = default;
  /// Calls work() once; nothing runs. work() must not synchronise, allocate or copy to or from
  /// unpinned memory. Throws DeviceError, or what work() throws; the context stays usable.
  LaunchGraph(Context& ctx, const std::function<void()>& work);
  ~LaunchGraph();
  LaunchGraph(LaunchGraph&& o) noexcept;
  LaunchGraph& operator=(LaunchGraph&& o) noexcept;
  LaunchGraph(const LaunchGraph&) = delete;
  LaunchGraph& operator=(const LaunchGraph&) = delete;

  explicit operator bool() const { return graph_ != nullptr; }
  /// Kernels, copies and fills.
  size_t nodes() const { return nodes_; }
  void launch(Context& ctx) const;

 private:
  void* graph_ = nullptr;
  size_t nodes_ = 0;
};

}  // namespace rwkv
