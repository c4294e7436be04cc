#pragma once
/// A request to generate text, and what its owner holds while it runs: used by the scheduler.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "inference/sampler.h"

namespace rwkv {

struct GenerationRequest {
  std::vector<int32_t> prompt;  ///< at least one id
  /// Positions of the prompt, ascending, after which other requests may go on in another way (ends
  /// of messages): states there are worth keeping. Others are ignored.
  std::vector<int64_t> shared;
  SamplingOptions sampling;
  int64_t samples =
      1;  ///< continuations of the one prompt; sample i draws as sequence i of the seed
  int64_t max_tokens = 16;           ///< of each sample
  std::vector<std::string> stop;     ///< end a sample; not part of its text
  std::vector<int32_t> stop_tokens;  ///< end a sample like the end of a document
  bool stop_at_end_of_document = true;
  int64_t top_log_probs = -1;  ///< -1: no log-probabilities; n: with the n most probable tokens
  double deadline = 0;         ///< on the clock of now_seconds(); 0: none
  bool keep_state = false;     ///< Scheduler::snapshot finds the last few of these after their end
};

enum class GenerationEnd : uint8_t {
  kLength,  ///< max_tokens
  kStop,    ///< a stop string
  kEnd,     ///< end of the document (id 0), or a stop token
  kCancelled,
  kDeadline,
  kError,
};
std::string_view generation_end_name(GenerationEnd end);

/// Something that happened to one sample.
struct GenerationEvent {
  int64_t sample = 0;
  std::string text;    ///< valid UTF-8; may be empty
  int64_t tokens = 0;  ///< drawn since the sample's last event, with those of stop strings
  /// One for each of them but for a token that ended the sample; empty unless asked for.
  std::vector<LogProbs> log_probs;
  std::optional<GenerationEnd> end;  ///< set in the sample's last event
  std::string error;                 ///< of kError
};

/// The owner's side of a running request. Any thread.
class Generation {
 public:
  /// The next event in order of time; none if nothing came within `seconds`.
  std::optional<GenerationEvent> wait(double seconds);
  /// Asks the worker to end all samples (kCancelled) and free their slots. Done at once for the
  /// owner; nothing is computed for it after the step that is running.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

  uint64_t id() const { return id_; }
  int64_t prompt_tokens() const { return prompt_tokens_; }
  /// Prompt tokens that came from the prefix cache; known when the first event is there.
  int64_t cached_tokens() const { return cached_tokens_.load(std::memory_order_relaxed); }

 private:
  friend class Scheduler;
  Generation(uint64_t id, int64_t prompt_tokens) : id_(id), prompt_tokens_(prompt_tokens) {}
  void push(GenerationEvent event);
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  uint64_t id_;
  int64_t prompt_tokens_;
  std::atomic<bool> cancelled_ = false;
  std::atomic<int64_t> cached_tokens_ = 0;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<GenerationEvent> events_;
};

}  // namespace rwkv
