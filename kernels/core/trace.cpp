#include "kernels/core/trace.h"

namespace rwkv {

void Tracer::add(std::string_view name, double seconds, double flops) {
  auto it = rows_.find(name);
  if (it == rows_.end()) it = rows_.emplace(std::string(name), Row{}).first;
  it->second.seconds += seconds;
  it->second.calls += 1;
  it->second.flops += flops;
}

}  // namespace rwkv
