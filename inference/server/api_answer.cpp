#include "inference/server/api_answer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/tokenizer/utf8.h"

namespace rwkv {

namespace {

using Tree = nlohmann::ordered_json;

std::string dump(const Tree& json) {
  return json.dump(-1, ' ', false, Tree::error_handler_t::replace);
}

std::string finish_reason(GenerationEnd end) {
  return end == GenerationEnd::kLength || end == GenerationEnd::kDeadline ? "length" : "stop";
}

/// Characters, as clients count offsets.
int64_t characters(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; });
}

Tree chat_token(const Tokenizer& tokenizer, const TokenLogProb& p) {
  const std::string_view bytes = tokenizer.token_bytes(p.token);
  Tree list = Tree::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return {{"token", to_valid_utf8(bytes)}, {"logprob", p.log_prob}, {"bytes", list}};
}

Tree chat_log_probs(const Tokenizer& tokenizer, const std::vector<LogProbs>& all) {
  Tree content = Tree::array();
  for (const LogProbs& p : all) {
    Tree entry = chat_token(tokenizer, p.chosen);
    entry["top_logprobs"] = Tree::array();
    for (const TokenLogProb& t : p.top) entry["top_logprobs"].push_back(chat_token(tokenizer, t));
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}};
}

Tree text_log_probs(const Tokenizer& tokenizer, const std::vector<LogProbs>& all, int64_t& offset) {
  Tree out = {{"tokens", Tree::array()},
              {"token_logprobs", Tree::array()},
              {"top_logprobs", Tree::array()},
              {"text_offset", Tree::array()}};
  for (const LogProbs& p : all) {
    const std::string text = to_valid_utf8(tokenizer.token_bytes(p.chosen.token));
    out["tokens"].push_back(text);
    out["token_logprobs"].push_back(p.chosen.log_prob);
    Tree top = Tree::object();
    for (const TokenLogProb& t : p.top)
      top[to_valid_utf8(tokenizer.token_bytes(t.token))] = t.log_prob;
    out["top_logprobs"].push_back(std::move(top));
    out["text_offset"].push_back(offset);
    offset += characters(text);
  }
  return out;
}

Tree usage_of(const ApiRequest& request, int64_t completion, int64_t cached) {
  int64_t prompt = 0;
  for (const auto& p : request.prompts) prompt += std::ssize(p.prompt);
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

}  // namespace

ApiAnswer::ApiAnswer(const ApiRequest& request, const Tokenizer& tokenizer, std::string model,
                     uint64_t number, int64_t created)
    : open_(request.choices()),
      request_(request),
      tokenizer_(tokenizer),
      model_(std::move(model)),
      id_(str(request.chat ? "chatcmpl-" : "cmpl-", number)),
      created_(created) {
  for (int64_t i = 0; i < open_; ++i)
    choices_.push_back({ChatAnswer(request.thinking, request.continued), {}, {}, {}, {}, 0});
}

std::string ApiAnswer::event(const std::string& choices, const std::string& usage) const {
  const Tree chunk = {{"id", id_},
                      {"object", request_.chat ? "chat.completion.chunk" : "text_completion"},
                      {"created", created_},
                      {"model", model_}};
  std::string text = dump(chunk);
  text.pop_back();
  text += str(R"(,"choices":)", choices);
  if (request_.include_usage) text += str(R"(,"usage":)", usage);
  return str("data: ", text, "}\n\n");
}

std::string ApiAnswer::begin() {
  std::string out;
  for (size_t i = 0; i < choices_.size(); ++i) {
    Tree choice = {{"index", i}};
    if (request_.chat) {
      choice["delta"] = {{"role", "assistant"}, {"content", ""}};
    } else if (request_.echo) {
      const auto& text = request_.texts[i / static_cast<size_t>(request_.prompts[0].samples)];
      choice["text"] = to_valid_utf8(text);
      choices_[i].offset = characters(text);
    } else {
      continue;
    }
    choice["logprobs"] = nullptr;
    choice["finish_reason"] = nullptr;
    out += event(dump(Tree::array({choice})));
  }
  return out;
}

std::string ApiAnswer::add(size_t prompt, const GenerationEvent& e) {
  const size_t index =
      prompt * static_cast<size_t>(request_.prompts[0].samples) + static_cast<size_t>(e.sample);
  Choice& c = choices_.at(index);
  if (e.end == GenerationEnd::kError) throw ApiError(500, e.error);
  if (e.end == GenerationEnd::kCancelled)
    throw ApiError(503, "the request was cancelled; the server is shutting down");
  completion_tokens_ += e.tokens;
  if (e.end == GenerationEnd::kDeadline && completion_tokens_ == 0)
    throw ApiError(503, "the time limit was over before a token was generated");
  ChatAnswer::Piece piece;
  if (request_.chat && request_.split_reasoning) {
    piece = c.answer.push(e.text);
    if (e.end) {
      const ChatAnswer::Piece rest = c.answer.finish();
      piece.reasoning += rest.reasoning;
      piece.content += rest.content;
    }
  } else {
    piece.content = e.text;
  }
  if (e.end) {
    c.finish = finish_reason(*e.end);
    --open_;
  }
  if (!request_.stream) {
    c.text += piece.content;
    c.reasoning += piece.reasoning;
    c.log_probs.insert(c.log_probs.end(), e.log_probs.begin(), e.log_probs.end());
    return {};
  }
  if (piece.empty() && e.log_probs.empty() && !e.end) return {};
  std::string out;
  const auto chunk = [&](Tree body, const Tree& finish) {
    Tree choice = {{"index", index}};
    choice.update(body);
    if (!choice.contains("logprobs")) choice["logprobs"] = nullptr;
    choice["finish_reason"] = finish;
    out += event(dump(Tree::array({choice})));
  };
  Tree log_probs;
  if (!e.log_probs.empty())
    log_probs = request_.chat ? chat_log_probs(tokenizer_, e.log_probs)
                              : text_log_probs(tokenizer_, e.log_probs, c.offset);
  if (!request_.chat) {
    chunk({{"text", piece.content}, {"logprobs", log_probs}}, e.end ? Tree(c.finish) : Tree());
    return out;
  }
  if (!piece.empty() || !e.log_probs.empty()) {
    Tree delta = Tree::object();
    if (!piece.reasoning.empty()) delta["reasoning_content"] = piece.reasoning;
    if (!piece.content.empty() || piece.reasoning.empty()) delta["content"] = piece.content;
    chunk({{"delta", delta}, {"logprobs", log_probs}}, nullptr);
  }
  if (e.end) chunk({{"delta", Tree::object()}}, c.finish);
  return out;
}

std::string ApiAnswer::end(int64_t cached) {
  std::string out;
  if (request_.include_usage)
    out = event("[]", dump(usage_of(request_, completion_tokens_, cached)));
  return out + "data: [DONE]\n\n";
}

std::string ApiAnswer::whole(int64_t cached) {
  Tree choices = Tree::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& c = choices_[i];
    const bool log_probs = request_.prompts[0].top_log_probs >= 0;
    Tree choice = {{"index", i}};
    if (request_.chat) {
      Tree message = {{"role", "assistant"}, {"content", c.text}};
      if (!c.reasoning.empty()) message["reasoning_content"] = c.reasoning;
      message["refusal"] = nullptr;
      choice["message"] = std::move(message);
      choice["logprobs"] = log_probs ? chat_log_probs(tokenizer_, c.log_probs) : Tree();
    } else {
      const auto& text = request_.texts[i / static_cast<size_t>(request_.prompts[0].samples)];
      choice["text"] = request_.echo ? to_valid_utf8(text) + c.text : c.text;
      choice["logprobs"] = log_probs ? text_log_probs(tokenizer_, c.log_probs, c.offset) : Tree();
    }
    choice["finish_reason"] = c.finish;
    choices.push_back(std::move(choice));
  }
  return dump({{"id", id_},
               {"object", request_.chat ? "chat.completion" : "text_completion"},
               {"created", created_},
               {"model", model_},
               {"choices", std::move(choices)},
               {"usage", usage_of(request_, completion_tokens_, cached)},
               {"system_fingerprint", nullptr}});
}

}  // namespace rwkv
