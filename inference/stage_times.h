#pragma once
/// Where the time of work on a GPU goes. In builds with CUDA.

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/context.h"

namespace rwkv {

/// Called on the host when all up to the end of the stage of this name is queued.
using StageMark = std::function<void(const char*)>;

/// Seconds of GPU time of each stage that `queue` marks, in the order of their first marks; stages
/// of the same name are added up. `queue` puts its work on the context's stream.
std::vector<std::pair<std::string, double>> time_stages(
    Context& ctx, const std::function<void(const StageMark&)>& queue);

}  // namespace rwkv
