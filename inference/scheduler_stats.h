#pragma once
/// What a scheduler has done so far.

#include <array>
#include <cstddef>
#include <cstdint>

namespace rwkv {

/// Counts of seconds in growing ranges, as Prometheus has them.
struct LatencyHistogram {
  static constexpr std::array<double, 16> kBounds = {
      0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300};
  std::array<uint64_t, kBounds.size() + 1> counts{};  ///< the last: longer than all
  double sum = 0;
  uint64_t count = 0;
  void add(double seconds);
};

struct SchedulerStats {
  uint64_t accepted = 0, refused = 0, prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;
  uint64_t decode_steps = 0;
  uint64_t prefill_pieces = 0, prefill_calls = 0;  ///< a call takes pieces of several prompts
  double decode_seconds = 0;                       ///< with draws
  double prefill_seconds = 0;
  double tell_seconds = 0;          ///< handing out tokens, also while a device decodes
  std::array<uint64_t, 6> ended{};  ///< samples, by GenerationEnd
  int64_t waiting = 0, prefilling = 0, decoding = 0, slots = 0, free_slots = 0;
  size_t cache_entries = 0, cache_bytes = 0;
  uint64_t cache_evictions = 0;
  LatencyHistogram first_token;  ///< from submit() to a request's first token
  LatencyHistogram token;        ///< between two tokens of a sample
  LatencyHistogram whole;        ///< from submit() to a request's end
};

}  // namespace rwkv
