#include "kernels/core/launch_graph.h"

#include <utility>

#include "kernels/core/backend.h"
#include "kernels/core/error.h"

namespace rwkv {

LaunchGraph::LaunchGraph(Context& ctx, const std::function<void()>& work) {
  RWKV_ASSERT(ctx.device() == Device::kCuda, "launch graphs are CUDA's");
  backend::cuda_capture_begin(ctx.stream());
  const auto mark = [&](bool on) {
    for (int i = 0; i < ctx.lanes(); ++i) ctx.lane(i).recording_ = on;
  };
  mark(true);
  try {
    work();
  } catch (...) {
    mark(false);
    backend::cuda_capture_end(ctx.stream(), true, nullptr);
    throw;
  }
  mark(false);
  graph_ = backend::cuda_capture_end(ctx.stream(), false, &nodes_);
}

LaunchGraph::~LaunchGraph() {
  if (graph_ != nullptr) backend::cuda_graph_release(graph_);
}

LaunchGraph::LaunchGraph(LaunchGraph&& o) noexcept
    : graph_(std::exchange(o.graph_, nullptr)), nodes_(std::exchange(o.nodes_, 0)) {}

LaunchGraph& LaunchGraph::operator=(LaunchGraph&& o) noexcept {
  std::swap(graph_, o.graph_);
  std::swap(nodes_, o.nodes_);
  return *this;
}

void LaunchGraph::launch(Context& ctx) const {
  RWKV_ASSERT(graph_ != nullptr, "nothing was recorded");
  backend::cuda_graph_launch(graph_, ctx.stream());
}

}  // namespace rwkv
