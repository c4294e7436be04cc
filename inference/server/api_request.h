#pragma once
/// Bodies of /v1/completions and /v1/chat/completions, checked and turned into requests for the
/// scheduler. docs/serving.md lists the members.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "inference/generation.h"
#include "inference/server/api_error.h"
#include "inference/server/chat_template.h"

namespace rwkv {

struct ApiLimits {
  int64_t prompt_tokens = 32768;  ///< of one prompt
  int64_t max_tokens = 4096;      ///< of one answer; also the default of chats
  int64_t choices = 16;           ///< prompts times n
  int64_t top_log_probs = 20;
};

struct ApiSettings {
  std::string model;  ///< the name that clients see
  ApiLimits limits;
  SamplingOptions sampling;  ///< what a request that says nothing gets
  ChatTemplate chat = ChatTemplate::kWorld;
  Thinking thinking = Thinking::kPlain;
  /// Members that no one knows are left alone; else they are errors that name the nearest known
  /// one.
  bool ignore_unknown = false;
  int64_t vocab = 0;  ///< rows of the model
};

struct ApiRequest {
  bool chat = false, stream = false, include_usage = false, echo = false;
  std::vector<GenerationRequest> prompts;  ///< each makes `samples` choices
  std::vector<std::string> texts;          ///< of the prompts, for echo
  Thinking thinking = Thinking::kPlain;
  bool continued = false;       ///< the answer goes on with the last message
  bool split_reasoning = true;  ///< thoughts are a member of their own
  int64_t choices() const { return prompts.empty() ? 0 : std::ssize(prompts) * prompts[0].samples; }
};

/// ApiError 400 if brackets are nested too deeply for what copies and prints JSON by recursion, or
/// so many that the parsed body takes many times the memory of its text.
void check_nesting(std::string_view body);

/// `seed`: for requests without one. Throws ApiError, naming the member.
ApiRequest parse_api_request(std::string_view body, bool chat, const ApiSettings& settings,
                             const Tokenizer& tokenizer, uint64_t seed);

}  // namespace rwkv
