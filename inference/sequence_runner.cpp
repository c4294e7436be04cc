#include "inference/sequence_runner.h"

#include <algorithm>

#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

/// Rows that have scratch memory of their own.
constexpr int64_t kPieces = 16;

}  // namespace

void SequenceRunner::start_draws(std::span<const int64_t> slots, std::span<const int32_t> ids,
                                 std::span<const DrawRequest> requests) {
  RWKV_CHECK(requests.size() == slots.size(), ShapeError, "draws: ", requests.size(),
             " requests for ", slots.size(), " sequences");
  const TensorView logits = decode(slots, ids);
  const int64_t n = std::ssize(slots), grain = std::max<int64_t>(1, (n + kPieces - 1) / kPieces);
  const auto vocab = static_cast<size_t>(logits.last());
  drawn_.assign(slots.size(), {});
  scratch_.resize(static_cast<size_t>((n + grain - 1) / grain));
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
      drawn_[i] = draw(requests[i], {logits.f32() + i * vocab, vocab},
                       scratch_[static_cast<size_t>(begin / grain)]);
  });
}

std::span<Drawn> SequenceRunner::finish_draws() {
  return drawn_;
}

}  // namespace rwkv
