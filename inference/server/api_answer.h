#pragma once
/// From events of the scheduler to bodies and server-sent events (spec formats g.3, g.4).

#include <cstdint>
#include <string>
#include <vector>

#include "inference/generation.h"
#include "inference/server/api_request.h"

namespace rwkv {

/// The answer to one request, whole or as a stream. Choices are numbered prompt by prompt.
class ApiAnswer {
 public:
  /// All must outlive the answer. `number` makes the id; `created` in Unix seconds.
  ApiAnswer(const ApiRequest& request, const Tokenizer& tokenizer, std::string model,
            uint64_t number, int64_t created);

  /// What a stream begins with.
  std::string begin();
  /// Takes in what happened to a sample of a prompt; for a stream returns what to send, maybe
  /// nothing. Throws ApiError for events that are no part of an answer: 500 for an error, 503 for a
  /// cancelled sample and for one that ran out of time without a token.
  std::string add(size_t prompt, const GenerationEvent& event);
  /// All choices have ended.
  bool complete() const { return open_ == 0; }
  /// What a stream ends with. `cached`: prompt tokens from the prefix cache.
  std::string end(int64_t cached);
  /// The body without streaming.
  std::string whole(int64_t cached);

  const std::string& id() const { return id_; }

 private:
  struct Choice {
    ChatAnswer answer;
    std::string text, reasoning, finish;
    std::vector<LogProbs> log_probs;
    int64_t offset = 0;  ///< characters of completion text ahead of the next token
  };
  /// One event; both are JSON.
  std::string event(const std::string& choices, const std::string& usage = "null") const;
  int64_t completion_tokens_ = 0, open_;

  const ApiRequest& request_;
  const Tokenizer& tokenizer_;
  std::string model_, id_;
  int64_t created_;
  std::vector<Choice> choices_;
};

}  // namespace rwkv
