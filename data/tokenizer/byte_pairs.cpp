#include "data/tokenizer/byte_pairs.h"

#include <array>
#include <bit>
#include <functional>
#include <queue>
#include <utility>

namespace rwkv {
namespace {
constexpr size_t kShort = 48;  // symbols; above, the queue is faster
}

BytePairs::BytePairs(const std::vector<PairMerge>& rules) {
  const size_t slots = std::bit_ceil(2 * rules.size() + 2);
  shift_ = 64 - std::countr_zero(slots);
  slots_.resize(slots);
  merged_.reserve(rules.size());
  for (const PairMerge& r : rules) {
    const uint64_t pair = pair_of(r.left, r.right);
    size_t at = slot_of(pair);
    while (slots_[at].rank != kNone && slots_[at].pair != pair) at = (at + 1) & (slots - 1);
    slots_[at] = {pair, static_cast<uint32_t>(merged_.size())};
    merged_.push_back(r.merged);
  }
}

uint32_t BytePairs::rank_of(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (size_t at = slot_of(pair);; at = (at + 1) & (slots_.size() - 1)) {
    const Slot& s = slots_[at];
    if (s.rank == kNone || s.pair == pair) return s.rank;
  }
}

void BytePairs::merge(std::vector<int32_t>& symbols) const {
  if (symbols.size() <= kShort)
    merge_short(symbols);
  else
    merge_long(symbols);
}

void BytePairs::merge_short(std::vector<int32_t>& symbols) const {
  size_t n = symbols.size();
  if (n < 2) return;
  std::array<uint32_t, kShort> ranks;  // [i]: of the pair i, i + 1
  for (size_t i = 0; i + 1 < n; ++i) ranks[i] = rank_of(symbols[i], symbols[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i)
      if (ranks[i] < ranks[best]) best = i;
    if (ranks[best] == kNone) break;
    symbols[best] = merged_[ranks[best]];
    for (size_t i = best + 1; i + 1 < n; ++i) {
      symbols[i] = symbols[i + 1];
      ranks[i - 1] = ranks[i];
    }
    --n;
    if (best > 0) ranks[best - 1] = rank_of(symbols[best - 1], symbols[best]);
    if (best + 1 < n) ranks[best] = rank_of(symbols[best], symbols[best + 1]);
  }
  symbols.resize(n);
}

void BytePairs::merge_long(std::vector<int32_t>& symbols) const {
  // A linked list of the symbols that are left, and a queue of pairs. A queue entry is out of date
  // when the rank of the pair that begins at its place has changed.
  const size_t n = symbols.size();
  std::vector<size_t> next(n), before(n);
  std::vector<uint32_t> rank(n, kNone);
  using Entry = std::pair<uint32_t, size_t>;  // rank, place: lowest first, then leftmost
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
  const auto look = [&](size_t i) {
    rank[i] = next[i] < n ? rank_of(symbols[i], symbols[next[i]]) : kNone;
    if (rank[i] != kNone) queue.emplace(rank[i], i);
  };
  for (size_t i = 0; i < n; ++i) {
    next[i] = i + 1;
    before[i] = i > 0 ? i - 1 : n;
  }
  for (size_t i = 0; i < n; ++i) look(i);
  while (!queue.empty()) {
    const auto [wanted, i] = queue.top();
    queue.pop();
    if (rank[i] != wanted) continue;
    const size_t gone = next[i];
    symbols[i] = merged_[wanted];
    next[i] = next[gone];
    if (next[i] < n) before[next[i]] = i;
    rank[gone] = kNone;
    look(i);
    if (before[i] < n) look(before[i]);
  }
  size_t kept = 0;
  for (size_t i = 0; i < n; i = next[i]) symbols[kept++] = symbols[i];
  symbols.resize(kept);
}

}  // namespace rwkv
