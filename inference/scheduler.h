#pragma once
/// Continuous batching: many requests on one runner, joining and leaving at any token.

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "inference/generation.h"
#include "inference/scheduler_stats.h"
#include "inference/sequence_runner.h"
#include "kernels/core/error.h"

namespace rwkv {

struct SchedulerOptions {
  int64_t max_waiting = 256;  ///< requests without a slot; more are refused
  /// Prompt tokens that are computed between two decoding steps while anything decodes (but always
  /// one piece): bounds how long running texts pause. 0: for as long as the last decoding step
  /// took.
  int64_t prefill_budget = 0;
  size_t cache_bytes = size_t{256} << 20;  ///< of the prefix cache, in host memory; 0: none
  /// Prompts are cut at `shared` positions and every so many tokens after one. Part of what decides
  /// the rounding, so equal for all requests, whatever is in the cache.
  int64_t cut_tokens = 512;
};

/// The server has no room now. Ask again after retry_seconds.
class OverloadedError : public Error {
 public:
  OverloadedError(const std::string& what, int64_t retry) : Error(what), retry_seconds(retry) {}
  int exit_code() const noexcept override { return 4; }
  int64_t retry_seconds;
};
/// The scheduler drains, or its runner has failed.
class UnavailableError : public Error {
 public:
  using Error::Error;
  int exit_code() const noexcept override { return 4; }
};

/// The state of a sequence, as SequenceRunner::save gave it.
struct StateSnapshot {
  std::vector<std::byte> bytes;
  int64_t tokens = 0;  ///< that it has seen
};

/// One worker thread drives the runner, which nobody else may touch meanwhile. Every round it
///   1. takes new requests into free slots, first come, first served (a request needs a slot for
///      each of its samples), from the longest beginning of the prompt that the cache knows,
///   2. computes pieces of prompts, taking turns, those side by side that go together
///      (SequenceRunner::prefill_group), within the budget,
///   3. decodes one token for every running sample, and samples.
/// What a request gets is a pure function of the request if the runner is exact(): its prompt is
/// cut in the same places whatever the cache holds and whoever else runs, and its draws depend on
/// (seed, sample, position) alone.
class Scheduler {
 public:
  /// Runner and tokenizer must outlive the scheduler. Throws ConfigError for bad options.
  Scheduler(SequenceRunner& runner, const Tokenizer& tokenizer, SchedulerOptions options = {});
  /// Cancels what is running.
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// Any thread. Throws ConfigError for a bad request, OverloadedError if too many wait,
  /// UnavailableError after drain() or once the runner has failed.
  std::shared_ptr<Generation> submit(GenerationRequest request);
  /// Refuses new requests and waits until all have ended; cancels those that have not after
  /// `seconds`. Returns how many samples were cancelled.
  int64_t drain(double seconds);

  SchedulerStats stats() const;
  /// Why the runner failed; empty while it works.
  std::string failure() const;
  /// The state of sample 0 of a request that runs, or that has ended lately and asked for it.
  std::optional<StateSnapshot> snapshot(uint64_t id);

 private:
  class Worker;
  std::unique_ptr<Worker> worker_;
};

}  // namespace rwkv
