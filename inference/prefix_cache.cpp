#include "inference/prefix_cache.h"

#include <algorithm>

namespace rwkv {
namespace {

constexpr size_t kRemembered = 4096;

uint64_t mix(uint64_t h, uint64_t x) {
  // The finalizer of splitmix64 (Steele et al. 2014), which spreads every bit.
  h ^= x + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
  return h ^ (h >> 31);
}

}  // namespace

std::vector<uint64_t> PrefixCache::keys(std::span<const int32_t> ids,
                                        std::span<const int64_t> cuts) {
  std::vector<uint64_t> keys;
  keys.reserve(cuts.size());
  uint64_t of_ids = 0, of_cuts = 0;
  size_t at = 0;
  for (const int64_t cut : cuts) {
    for (; at < static_cast<size_t>(cut); ++at)
      of_ids = mix(of_ids, static_cast<uint64_t>(ids[at]));
    of_cuts = mix(of_cuts, static_cast<uint64_t>(cut));
    keys.push_back(std::max<uint64_t>(mix(of_ids, of_cuts), 1));
  }
  return keys;
}

PromptCuts::PromptCuts(int64_t n, std::span<const int64_t> shared, int64_t every) {
  int64_t at = 0, least = 1;
  const auto run_to = [&](int64_t end) {
    while (at + every < end) {
      at_.push_back(at += every);
      shared_.push_back(0);
    }
    at = end;
  };
  for (const int64_t s : shared) {
    if (s < least || s >= n) continue;
    least = s + kApart;
    run_to(s);
    at_.push_back(s);
    shared_.push_back(1);
  }
  run_to(n);
}

size_t PromptCuts::next(int64_t position) const {
  return static_cast<size_t>(std::ranges::upper_bound(at_, position) - at_.begin());
}

bool PromptCuts::outermost(size_t i) const {
  const auto here = shared_.begin() + static_cast<std::ptrdiff_t>(i);
  const auto is_shared = [](char c) { return c != 0; };
  return *here != 0 && (std::none_of(shared_.begin(), here, is_shared) ||
                        std::none_of(here + 1, shared_.end(), is_shared));
}

size_t PrefixCache::Entry::bytes() const {
  return state.size() + ids.size() * sizeof ids[0] + cuts.size() * sizeof cuts[0] + sizeof(Entry);
}

PrefixCache::List::iterator PrefixCache::locate(const Prefix& prefix) {
  const auto [begin, end] = index_.equal_range(prefix.key);
  for (auto it = begin; it != end; ++it)
    if (std::ranges::equal(it->second->ids, prefix.ids) &&
        std::ranges::equal(it->second->cuts, prefix.cuts))
      return it->second;
  return entries_.end();
}

std::span<const std::byte> PrefixCache::find(const Prefix& prefix) {
  const auto found = locate(prefix);
  if (found == entries_.end()) return {};
  entries_.splice(entries_.begin(), entries_, found);
  return found->state;
}

bool PrefixCache::seen_before(const Prefix& prefix) {
  if (max_bytes_ == 0) return false;
  remembered_.resize(kRemembered, 0);
  uint64_t& place = remembered_[prefix.key % kRemembered];
  const bool seen = place == prefix.key;
  place = prefix.key;
  return seen;
}

bool PrefixCache::put(const Prefix& prefix, std::span<const std::byte> state) {
  if (const auto old = locate(prefix); old != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, old);
    return false;
  }
  Entry e{prefix.key,
          {prefix.ids.begin(), prefix.ids.end()},
          {prefix.cuts.begin(), prefix.cuts.end()},
          {}};
  if (e.bytes() + state.size() > max_bytes_) return false;
  e.state.assign(state.begin(), state.end());
  while (bytes_ + e.bytes() > max_bytes_) {
    erase(std::prev(entries_.end()));
    ++evictions_;
  }
  bytes_ += e.bytes();
  entries_.push_front(std::move(e));
  index_.emplace(prefix.key, entries_.begin());
  return true;
}

void PrefixCache::erase(List::iterator entry) {
  const auto [begin, end] = index_.equal_range(entry->key);
  for (auto it = begin; it != end; ++it)
    if (it->second == entry) {
      index_.erase(it);
      break;
    }
  bytes_ -= entry->bytes();
  entries_.erase(entry);
}

}  // namespace rwkv
