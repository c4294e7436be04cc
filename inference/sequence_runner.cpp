#include "inference/sequence_runner.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace rwkv {

TensorView SequenceRunner::prefill_batch(std::span<const int64_t> slots,
                                         std::span<const std::span<const int32_t>> ids) {
  RWKV_CHECK(!slots.empty() && slots.size() == ids.size(), ShapeError, "prefill: ", slots.size(),
             " slots and pieces of ", ids.size(),
             " prompts, expected the same number of at least 1");
  if (slots.size() == 1) return prefill(slots[0], ids[0]);
  std::vector<int64_t> sorted(slots.begin(), slots.end());
  std::ranges::sort(sorted);
  const auto same = std::ranges::adjacent_find(sorted);
  RWKV_CHECK(same == sorted.end(), ConfigError, "prefill: slot ", *same, " is given twice");
  const auto vocab = static_cast<size_t>(config().vocab_size);
  prefill_logits_.resize(slots.size() * vocab);
  for (size_t i = 0; i < slots.size(); ++i) {
    const TensorView logits = prefill(slots[i], ids[i]);
    std::copy_n(logits.f32(), vocab, prefill_logits_.data() + i * vocab);
  }
  return {prefill_logits_.data(), {std::ssize(slots), config().vocab_size}};
}

void SequenceRunner::start_draws(std::span<const int64_t> slots, std::span<const int32_t> ids,
                                 std::span<const DrawRequest> requests) {
  RWKV_CHECK(requests.size() == slots.size(), ShapeError, "draws: ", requests.size(),
             " requests for ", slots.size(), " sequences");
  draw_rows(decode(slots, ids), requests);
}

void SequenceRunner::start_prefill_draws(std::span<const int64_t> slots,
                                         std::span<const std::span<const int32_t>> ids,
                                         std::span<const DrawRequest> requests) {
  RWKV_CHECK(requests.size() == slots.size(), ShapeError, "draws: ", requests.size(),
             " requests for ", slots.size(), " prompts");
  draw_rows(prefill_batch(slots, ids), requests);
}

void SequenceRunner::draw_rows(const TensorView& logits, std::span<const DrawRequest> requests) {
  const auto vocab = static_cast<size_t>(logits.last());
  std::vector<std::span<const float>> rows(requests.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = {logits.f32() + i * vocab, vocab};
  drawn_.assign(requests.size(), {});
  draw_all(requests, rows, drawn_, scratch_);
}

std::span<Drawn> SequenceRunner::finish_draws() {
  return drawn_;
}

}  // namespace rwkv
