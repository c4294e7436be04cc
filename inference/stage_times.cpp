#include "inference/stage_times.h"

#include <algorithm>
#include <memory>

#include "kernels/core/backend.h"

namespace rwkv {

std::vector<std::pair<std::string, double>> time_stages(
    Context& ctx, const std::function<void(const StageMark&)>& queue) {
  struct Release {
    void operator()(void* event) const { backend::cuda_event_release(event); }
  };
  std::vector<std::pair<std::string, std::unique_ptr<void, Release>>> points;
  const StageMark mark = [&](const char* stage) {
    points.emplace_back(stage, backend::cuda_event_create());
    backend::cuda_event_record(points.back().second.get(), ctx.stream());
  };
  mark("");
  queue(mark);
  std::vector<std::pair<std::string, double>> stages;
  for (size_t i = 1; i < points.size(); ++i) {
    const double seconds =
        backend::cuda_event_seconds(points[i - 1].second.get(), points[i].second.get());
    const auto known =
        std::ranges::find_if(stages, [&](const auto& s) { return s.first == points[i].first; });
    if (known == stages.end())
      stages.emplace_back(points[i].first, seconds);
    else
      known->second += seconds;
  }
  return stages;
}

}  // namespace rwkv
