#include "inference/warm_up.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace rwkv {
namespace {

/// The slots 0, 1, ... and a sampler, a token and a piece for each.
class Rows {
 public:
  explicit Rows(SequenceRunner& runner) : runner_(runner) {}

  void step(int64_t n) {
    grow(n);
    const std::vector<int32_t> ids(slots_.size(), 0);
    runner_.start_draws(slots_, ids, requests());
    runner_.finish_draws();
  }
  void prompts(int64_t n, int64_t tokens) {
    grow(n);
    const std::vector<int32_t> ids(static_cast<size_t>(tokens), 0);
    const std::vector<std::span<const int32_t>> pieces(slots_.size(), ids);
    runner_.start_prefill_draws(slots_, pieces, requests());
    runner_.finish_draws();
  }
  void reset() {
    for (int64_t s = 0; s < most_; ++s) runner_.reset(s);
  }

 private:
  void grow(int64_t n) {
    slots_.resize(static_cast<size_t>(n));
    for (int64_t s = 0; s < n; ++s) slots_[static_cast<size_t>(s)] = s;
    samplers_.assign(slots_.size(), TokenSampler(SamplingOptions{}));
    most_ = std::max(most_, n);
  }
  /// Of nobody's ids: samplers without penalties leave nothing behind.
  std::vector<DrawRequest> requests() {
    std::vector<DrawRequest> all;
    for (TokenSampler& s : samplers_) all.push_back({.sampler = &s});
    return all;
  }

  SequenceRunner& runner_;
  std::vector<int64_t> slots_;
  std::vector<TokenSampler> samplers_;
  int64_t most_ = 0;
};

}  // namespace

void warm_up(SequenceRunner& runner, std::span<const int64_t> buckets) {
  Rows rows(runner);
  for (const int64_t b : buckets) rows.step(std::min(b, runner.slots()));
  if (!runner.exact() || buckets.empty()) rows.step(1);
  const int64_t longest = runner.prefill_piece(std::numeric_limits<int32_t>::max());
  if (longest > 1) rows.prompts(1, longest);
  for (int64_t n = 1; n <= longest; ++n) {
    const SequenceRunner::PrefillGroup group = runner.prefill_group(n);
    if (group.group < n) continue;  // not by the length of its longest piece
    n = group.group;
    rows.prompts(1, n);
    if (runner.exact() || group.batch == 1) continue;
    for (int64_t pieces = 2; pieces < group.batch; pieces *= 2) rows.prompts(pieces, n);
    rows.prompts(group.batch, n);
  }
  rows.reset();
}

}  // namespace rwkv
