#include "inference/draws.h"

#include <algorithm>

#include "kernels/core/error.h"
#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

/// Rows that have scratch memory of their own.
constexpr int64_t kPieces = 16;

}  // namespace

Drawn draw(const DrawRequest& request, std::span<const float> logits, DrawScratch& scratch) {
  Drawn d;
  if (request.vocab > 0) logits = logits.first(static_cast<size_t>(request.vocab));
  try {
    d.token = request.sampler->next(logits, scratch);
    if (request.top_log_probs >= 0) d.log_probs = log_probs(logits, d.token, request.top_log_probs);
  } catch (const NonFiniteError& e) {
    d.error = e.what();
  }
  return d;
}

void draw_all(std::span<const DrawRequest> requests, std::span<const std::span<const float>> logits,
              std::span<Drawn> drawn, std::vector<DrawScratch>& scratch) {
  RWKV_ASSERT(logits.size() == requests.size() && drawn.size() == requests.size(), "draws");
  const int64_t n = std::ssize(requests), grain = std::max<int64_t>(1, (n + kPieces - 1) / kPieces);
  if (std::ssize(scratch) < (n + grain - 1) / grain)
    scratch.resize(static_cast<size_t>((n + grain - 1) / grain));
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
      if (requests[i].sampler != nullptr)
        drawn[i] = draw(requests[i], logits[i], scratch[static_cast<size_t>(begin / grain)]);
  });
}

}  // namespace rwkv
