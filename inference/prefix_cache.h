#pragma once
/// Recurrent states of prompt beginnings that several requests share, in host memory.

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

namespace rwkv {

/// Where a prompt is cut for prefill: at `shared` positions, and every so many tokens after one. A
/// function of the request alone, since the cuts decide the rounding.
class PromptCuts {
 public:
  PromptCuts() = default;
  /// Shared positions nearer than this to the last one taken are ignored: every cut costs a call.
  static constexpr int64_t kApart = 64;
  /// Of a prompt of n ids; positions outside of it, or not ascending, are ignored. From the front,
  /// so a prompt that goes on with another's text is cut where that one was: also its last cut,
  /// less than kApart ahead of the last shared position, is on the way of what follows.
  PromptCuts(int64_t n, std::span<const int64_t> shared, int64_t every);
  size_t size() const { return at_.size(); }
  std::span<const int64_t> all() const { return at_; }
  int64_t at(size_t i) const { return at_[i]; }
  /// Cuts up to and with the i-th.
  std::span<const int64_t> path(size_t i) const { return std::span(at_).first(i + 1); }
  /// Index of the first cut behind a position; size() if there is none.
  size_t next(int64_t position) const;
  /// The first or the last of the shared ones.
  bool outermost(size_t i) const;

 private:
  std::vector<int64_t> at_;
  std::vector<char> shared_;
};

/// Least recently used states by (token prefix, places where prefill was cut). The cuts are part of
/// the key because they decide the rounding: what is found here is what the request would have
/// computed, bit for bit. One thread at a time.
class PrefixCache {
 public:
  /// 0 bytes: keeps nothing.
  explicit PrefixCache(size_t max_bytes) : max_bytes_(max_bytes) {}

  /// Of the beginnings of `ids` up to each of `cuts` (ascending, within them), in one pass; never
  /// 0.
  static std::vector<uint64_t> keys(std::span<const int32_t> ids, std::span<const int64_t> cuts);

  /// All of `ids`, cut at `cuts`, of which the last one is ids.size(); the key is the last of
  /// keys(ids, cuts), or of the keys of a longer text that begins and is cut like this one.
  struct Prefix {
    uint64_t key;
    std::span<const int32_t> ids;
    std::span<const int64_t> cuts;
  };
  /// The state after a prefix; empty if there is none. Valid until the next put().
  std::span<const std::byte> find(const Prefix& prefix);
  /// True from the second call for a prefix on (as long as it is remembered): worth keeping.
  bool seen_before(const Prefix& prefix);
  /// Keeps a copy, and drops others for it; whether it did: not what is there already, nor what is
  /// larger than all of the cache.
  bool put(const Prefix& prefix, std::span<const std::byte> state);

  size_t entries() const { return entries_.size(); }
  size_t bytes() const { return bytes_; }
  size_t max_bytes() const { return max_bytes_; }
  uint64_t evictions() const { return evictions_; }

 private:
  struct Entry {
    uint64_t key;
    std::vector<int32_t> ids;
    std::vector<int64_t> cuts;
    std::vector<std::byte> state;
    size_t bytes() const;
  };
  using List = std::list<Entry>;
  List::iterator locate(const Prefix& prefix);
  void erase(List::iterator entry);

  size_t max_bytes_, bytes_ = 0;
  uint64_t evictions_ = 0;
  List entries_;  ///< most recently used first
  std::unordered_multimap<uint64_t, List::iterator> index_;
  std::vector<uint64_t> remembered_;  ///< keys of prefixes seen once, by key modulo its size
};

}  // namespace rwkv
