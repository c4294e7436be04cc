#pragma once
/// What the scheduler's worker keeps of requests.

#include <cstdint>
#include <memory>
#include <vector>

#include "inference/draws.h"
#include "inference/generation.h"
#include "inference/prefix_cache.h"
#include "inference/sampler.h"
#include "inference/text_stream.h"

namespace rwkv {

/// A request from submit() to its end.
struct SchedulerJob {
  std::shared_ptr<Generation> handle;
  GenerationRequest request;
  double submitted = 0, admitted = 0;
  PromptCuts cuts;
  std::vector<uint64_t> keys;  ///< of the prefixes up to the cuts; none without a cache
  std::vector<int64_t> slots;  ///< one per sample; the prompt is computed in the first
  int64_t position = 0;        ///< prompt ids that the state has seen
  uint64_t next_key = 0;       ///< of the prefix up to the next cut; 0: no cut is left
  uint64_t cache_version = 0;  ///< when the cache was asked last
  int64_t samples_open = 0;
};
/// A sample that decodes.
struct SchedulerSequence {
  SchedulerJob* job;
  int64_t sample, slot;
  TokenSampler sampler;
  TextStream text;
  uint64_t number;  ///< of the sampler
  int32_t last = 0;
  int64_t drawn = 0;
  int64_t fed = 0;  ///< of those drawn, that the state has seen
  double last_time = 0;
  bool last_token = false;  ///< known from the token alone; its text is still to be told
  bool ended = false;
};
/// What was drawn and not told yet.
struct Told {
  SchedulerSequence* sequence;
  Drawn drawn;
};

}  // namespace rwkv
