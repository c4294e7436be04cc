#include "inference/server/api_request.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "data/io/json_depth.h"
#include "inference/generate.h"
#include "kernels/core/edit_distance.h"

namespace rwkv {
namespace {

using Json = nlohmann::json;

/// Members of a request's object. Every one that is asked for is known; what is left at the end is
/// not. null counts as absent.
class Members {
 public:
  Members(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
    if (!object.is_object())
      throw ApiError(400, str(name_or_body(), " is ", kind(object), ", expected an object"), path_);
  }

  const Json* find(const std::string& name) {
    known_.insert(name);
    const auto at = object_.find(name);
    return at == object_.end() || at->is_null() ? nullptr : &*at;
  }
  std::string full(const std::string& name) const {
    return path_.empty() ? name : str(path_, ".", name);
  }
  [[noreturn]] void fail(const std::string& name, const std::string& what) const {
    throw ApiError(400, str(full(name), " ", what), full(name));
  }
  [[noreturn]] void wrong(const std::string& name, const Json& found, const char* expected) const {
    fail(name, str("is ", kind(found), ", expected ", expected));
  }

  bool flag(const std::string& name, bool otherwise) {
    const Json* v = find(name);
    if (v == nullptr) return otherwise;
    if (!v->is_boolean()) wrong(name, *v, "true or false");
    return v->get<bool>();
  }
  void number(const std::string& name, double& to) {
    const Json* v = find(name);
    if (v == nullptr) return;
    if (!v->is_number()) wrong(name, *v, "a number");
    to = v->get<double>();
  }
  bool integer(const std::string& name, int64_t& to, int64_t least, int64_t most) {
    const Json* v = find(name);
    if (v == nullptr) return false;
    if (!v->is_number_integer()) wrong(name, *v, "an integer");
    const bool huge = v->is_number_unsigned() && v->get<uint64_t>() > uint64_t{INT64_MAX};
    to = huge ? INT64_MAX : v->get<int64_t>();
    if (huge || to < least || to > most)
      fail(name, str("is ", v->dump(), ", expected ", least, " to ", most));
    return true;
  }
  std::string text(const std::string& name, const std::string& otherwise = {}) {
    const Json* v = find(name);
    if (v == nullptr) return otherwise;
    if (!v->is_string()) wrong(name, *v, "a string");
    return v->get<std::string>();
  }
  /// An integer or a list of integers.
  std::vector<int32_t> ids(const std::string& name, const Json& v) const {
    std::vector<int32_t> out;
    const Json one = v.is_array() ? Json() : Json::array({v});
    for (const Json& x : v.is_array() ? v : one) {
      if (!x.is_number_integer()) wrong(name, x, "token ids");
      const auto id = x.get<int64_t>();
      if (id < 0 || id > INT32_MAX) fail(name, str("has the token id ", x.dump()));
      out.push_back(static_cast<int32_t>(id));
    }
    return out;
  }

  /// Throws for members that nobody asked for.
  void check_all_known() const {
    for (const auto& [name, value] : object_.items()) {
      if (known_.contains(name)) continue;
      std::string nearest;
      size_t least = 4;
      for (const std::string& k : known_)
        if (const size_t d = edit_distance(name, k); d < least && worth_suggesting(d, name))
          least = d, nearest = k;
      throw ApiError(400,
                     str("unrecognized request argument: ", full(name),
                         nearest.empty() ? "" : str("; did you mean ", nearest, "?")),
                     full(name), "unknown_parameter");
    }
  }

  static std::string kind(const Json& v) {
    return v.is_null()      ? "null"
           : v.is_string()  ? "a string"
           : v.is_boolean() ? "a boolean"
           : v.is_number()  ? "a number"
           : v.is_array()   ? "a list"
                            : "an object";
  }

 private:
  std::string name_or_body() const { return path_.empty() ? "the body" : path_; }
  const Json& object_;
  std::string path_;
  std::set<std::string> known_;
};

class Parser {
 public:
  Parser(const Json& body, bool chat, const ApiSettings& settings, const Tokenizer& tokenizer,
         uint64_t seed)
      : in_(body, ""), settings_(settings), tokenizer_(tokenizer) {
    request_.chat = chat;
    common_.sampling = settings.sampling;
    common_.sampling.seed = seed;
  }

  ApiRequest parse() {
    model();
    sampling();
    ends();
    biases();
    log_probs();
    output();
    unsupported();
    if (request_.chat)
      chat();
    else
      prompts();
    // Known to clients and without an effect here.
    for (const char* name : {"user", "store", "metadata", "service_tier", "parallel_tool_calls",
                             "prompt_cache_key", "safety_identifier", "cache_prompt", "verbosity"})
      in_.find(name);
    if (!settings_.ignore_unknown) in_.check_all_known();
    const int64_t choices = request_.choices();
    if (choices > settings_.limits.choices)
      in_.fail("n", str("asks for ", choices, " choices in all, the limit is ",
                        settings_.limits.choices));
    return std::move(request_);
  }

 private:
  void model() {
    const std::string name = in_.text("model", settings_.model);
    if (name != settings_.model)
      throw ApiError(
          404, str("the model '", name, "' does not exist here; there is '", settings_.model, "'"),
          "model", "model_not_found");
  }

  void sampling() {
    SamplingOptions& s = common_.sampling;
    const auto number = [&](double& to, std::initializer_list<const char*> names) {
      for (const char* n : names) in_.number(n, to);
    };
    number(s.temperature, {"temperature"});
    number(s.top_p, {"top_p"});
    number(s.min_p, {"min_p"});
    number(s.presence_penalty, {"alpha_presence", "presence_penalty"});
    number(s.frequency_penalty, {"alpha_frequency", "frequency_penalty"});
    number(s.penalty_decay, {"alpha_decay", "penalty_decay"});
    number(s.repetition_penalty, {"repeat_penalty", "repetition_penalty"});
    // Zero is "nothing but the best" to some clients.
    if (s.top_p == 0) s.top_p = 1, s.top_k = 1;
    if (int64_t k = 0; in_.integer("top_k", k, -1, INT32_MAX)) s.top_k = std::max<int64_t>(k, 0);
    if (int64_t seed = 0; in_.integer("seed", seed, INT64_MIN, INT64_MAX))
      s.seed = static_cast<uint64_t>(seed);
    in_.integer("n", common_.samples, 1, settings_.limits.choices);
    try {
      s.check();
    } catch (const ConfigError& e) {
      // "sampling: NAME is ..."
      const std::string text = e.what();
      const size_t at = text.find(' ') + 1;
      throw ApiError(400, text, text.substr(at, text.find(' ', at) - at));
    }
    if (in_.flag("free_numbers", false)) s.uncounted_tokens = number_tokens(tokenizer_);
  }

  void ends() {
    const int64_t most = settings_.limits.max_tokens;
    common_.max_tokens = request_.chat ? most : std::min<int64_t>(16, most);
    in_.integer("max_tokens", common_.max_tokens, request_.chat ? 1 : 0, most);
    if (request_.chat) in_.integer("max_completion_tokens", common_.max_tokens, 1, most);
    if (const Json* v = in_.find("stop")) {
      const Json one = v->is_array() ? Json() : Json::array({*v});
      for (const Json& s : v->is_array() ? *v : one) {
        if (!s.is_string()) in_.wrong("stop", s, "a string or a list of strings");
        if (s.get_ref<const std::string&>().empty()) in_.fail("stop", "has an empty string");
        common_.stop.push_back(s.get<std::string>());
      }
      if (common_.stop.size() > 16) in_.fail("stop", "has more than 16 strings");
      for (const std::string& s : common_.stop)
        if (s.size() > 1000) in_.fail("stop", "has a string of more than 1000 bytes");
    }
    for (const char* name : {"stop_token_ids", "stop_tokens"})
      if (const Json* v = in_.find(name)) common_.stop_tokens = known_ids(name, *v);
    common_.stop_at_end_of_document = !in_.flag("ignore_eos", false);
    common_.keep_state = in_.flag("keep_state", false);
  }

  /// A set of ids needs no more entries than there are ids.
  void check_size(const char* name, const Json& v) const {
    if (std::ssize(v) > settings_.vocab)
      in_.fail(name, str("has ", v.size(), " entries, more than the model has token ids, ",
                         settings_.vocab));
  }

  /// A set of token ids of the model, ascending.
  std::vector<int32_t> known_ids(const char* name, const Json& v) const {
    check_size(name, v);
    std::vector<int32_t> ids = in_.ids(name, v);
    std::ranges::sort(ids);
    ids.erase(std::ranges::unique(ids).begin(), ids.end());
    if (!ids.empty() && ids.back() >= settings_.vocab)
      in_.fail(name,
               str("has the token id ", ids.back(), ", expected ids below ", settings_.vocab));
    return ids;
  }

  void biases() {
    if (const Json* v = in_.find("logit_bias")) {
      if (!v->is_object()) in_.wrong("logit_bias", *v, "an object of token ids and numbers");
      check_size("logit_bias", *v);
      for (const auto& [key, bias] : v->items()) {
        int32_t id = 0;
        const char* end = key.data() + key.size();
        const auto [stop, error] = std::from_chars(key.data(), end, id);
        if (error != std::errc{} || stop != end || id < 0 || id >= settings_.vocab)
          in_.fail("logit_bias",
                   str("has the key '", key, "', expected a token id below ", settings_.vocab));
        if (!bias.is_number() || std::fabs(bias.get<double>()) > 100)
          in_.fail("logit_bias", str("of ", key, " is ", bias.dump(), ", expected -100 to 100"));
        common_.sampling.logit_bias.emplace_back(id, bias.get<float>());
      }
    }
    if (const Json* v = in_.find("banned_token_ids"))
      common_.sampling.banned_tokens = known_ids("banned_token_ids", *v);
  }

  void log_probs() {
    const int64_t most = settings_.limits.top_log_probs;
    if (!request_.chat) {
      in_.integer("logprobs", common_.top_log_probs, 0, most);
      return;
    }
    const bool wanted = in_.flag("logprobs", false);
    if (wanted) common_.top_log_probs = 0;
    int64_t top = 0;
    if (in_.integer("top_logprobs", top, 0, most)) {
      if (!wanted) in_.fail("top_logprobs", "needs logprobs to be true");
      common_.top_log_probs = top;
    }
  }

  void output() {
    request_.stream = in_.flag("stream", false);
    if (const Json* v = in_.find("stream_options")) {
      Members o(*v, "stream_options");
      request_.include_usage = o.flag("include_usage", false);
      o.find("include_obfuscation");
      if (!settings_.ignore_unknown) o.check_all_known();
      if (!request_.stream) in_.fail("stream_options", "needs stream to be true");
    }
    if (!request_.chat) {
      request_.echo = in_.flag("echo", false);
      if (request_.echo && common_.top_log_probs >= 0)
        in_.fail("echo", "with logprobs is not supported: prompts get no log-probabilities");
    }
  }

  /// Members that would change the answer in ways that are not there.
  void unsupported() {
    const auto refuse = [&](const char* name, std::initializer_list<Json> neutral) {
      const Json* v = in_.find(name);
      if (v == nullptr || std::ranges::find(neutral, *v) != neutral.end()) return;
      throw ApiError(501, str(name, " is not supported by this server; leave it out"), name);
    };
    const Json none = Json::array(), nothing = Json::object();
    if (request_.chat) {
      refuse("tools", {none});
      refuse("tool_choice", {Json("none"), Json("auto")});
      refuse("functions", {none});
      refuse("function_call", {Json("none"), Json("auto")});
      refuse("response_format", {Json({{"type", "text"}})});
      refuse("modalities", {Json::array({"text"})});
      refuse("audio", {});
      refuse("prediction", {});
      refuse("web_search_options", {});
    } else {
      refuse("suffix", {Json("")});
      refuse("best_of", {Json(1), Json(common_.samples)});
    }
    refuse("typical_p", {Json(1), Json(1.0)});
    refuse("session_id", {});
    refuse("state", {});
    refuse("contents", {});
  }

  void add_prompt(std::vector<int32_t> ids, std::string text, const std::string& where) {
    const int64_t most = settings_.limits.prompt_tokens;
    if (std::ssize(ids) > most)
      throw ApiError(400, str(where, " has ", ids.size(), " tokens, the limit is ", most), where,
                     "context_length_exceeded");
    for (const int32_t id : ids)
      if (id >= settings_.vocab)
        in_.fail(where, str("has the token id ", id, ", the model has ", settings_.vocab));
    GenerationRequest r = common_;
    r.prompt = std::move(ids);
    request_.prompts.push_back(std::move(r));
    request_.texts.push_back(std::move(text));
  }

  void prompts() {
    const bool start = in_.flag("add_special_tokens", true);
    const Json* v = in_.find("prompt");
    if (v == nullptr) in_.fail("prompt", "is missing");
    const auto add_text = [&](const std::string& text) {
      auto ids = prompt_ids(tokenizer_, text, start);
      if (ids.empty()) ids.push_back(kEndOfDocument);
      add_prompt(std::move(ids), text, "prompt");
    };
    const auto add_ids = [&](const Json& list) {
      auto ids = in_.ids("prompt", list);
      if (ids.empty()) in_.fail("prompt", "is an empty list of token ids");
      std::string text = request_.echo ? tokenizer_.decode(ids) : "";
      add_prompt(std::move(ids), std::move(text), "prompt");
    };
    if (v->is_string()) return add_text(v->get<std::string>());
    if (!v->is_array() || v->empty())
      in_.wrong("prompt", *v, "a string, strings, token ids or lists of token ids, not empty");
    if (v->front().is_number()) return add_ids(*v);
    if (std::ssize(*v) > settings_.limits.choices)
      in_.fail("prompt",
               str("has ", v->size(), " prompts, the limit is ", settings_.limits.choices));
    for (const Json& p : *v) {
      if (p.is_string())
        add_text(p.get<std::string>());
      else if (p.is_array())
        add_ids(p);
      else
        in_.wrong("prompt", p, "strings or lists of token ids in a list");
    }
  }

  void thinking() {
    request_.thinking = settings_.thinking;
    const auto set = [&](bool on) { request_.thinking = on ? Thinking::kOn : Thinking::kOff; };
    for (const char* name : {"enable_think", "enable_thinking"})
      if (in_.find(name) != nullptr) set(in_.flag(name, false));
    if (const Json* v = in_.find("chat_template_kwargs")) {
      Members o(*v, "chat_template_kwargs");
      if (o.find("enable_thinking") != nullptr) set(o.flag("enable_thinking", false));
      if (!settings_.ignore_unknown) o.check_all_known();
    }
    const std::string effort = in_.text("reasoning_effort");
    if (effort == "none" || effort == "minimal") {
      set(false);
    } else if (!effort.empty()) {
      if (effort == "low")
        effort_ = "think a bit";
      else if (effort == "medium")
        effort_ = "think";
      else if (effort == "high")
        effort_ = "think a lot";
      else
        in_.fail("reasoning_effort",
                 str("is '", effort, "', expected none, minimal, low, medium or high"));
      set(true);
    }
    const std::string format = in_.text("reasoning_format", "split");
    if (format != "split" && format != "none")
      in_.fail("reasoning_format", "expects split or none");
    request_.split_reasoning = format == "split";
  }

  void chat() {
    thinking();
    const Json* v = in_.find("messages");
    if (v == nullptr) in_.fail("messages", "is missing");
    if (!v->is_array()) in_.wrong("messages", *v, "a list of messages");
    std::vector<ChatMessage> messages;
    for (const Json& m : *v) messages.push_back(message(m, str("messages[", messages.size(), "]")));
    ChatPrompt prompt;
    try {
      prompt = chat_prompt(messages, settings_.chat, request_.thinking, effort_);
    } catch (const ConfigError& e) {
      throw ApiError(400, e.what(), "messages");
    }
    request_.continued = messages.back().role == "assistant";
    for (std::string& s : chat_stops(settings_.chat)) common_.stop.push_back(std::move(s));
    std::vector<int32_t> ids = prompt_ids(tokenizer_, prompt.text, false);
    common_.shared = cuts(ids, prompt.ends);
    add_prompt(std::move(ids), "", "messages");
  }

  ChatMessage message(const Json& v, const std::string& where) const {
    Members in(v, where);
    ChatMessage m{in.text("role"), {}};
    if (m.role.empty()) in.fail("role", "is missing");
    for (const char* name : {"name", "tool_call_id", "refusal", "reasoning_content", "annotations",
                             "audio", "tool_calls", "function_call", "reasoning"})
      in.find(name);
    const Json* content = in.find("content");
    if (content == nullptr) {
      if (m.role != "assistant") in.fail("content", "is missing");
    } else if (content->is_string()) {
      m.content = content->get<std::string>();
    } else if (content->is_array()) {
      for (const Json& part : *content) {
        Members p(part, str(where, ".content[]"));
        const std::string type = p.text("type");
        if (type != "text")
          throw ApiError(
              501,
              str(where, ".content has a part of type '", type, "'; this server takes text only"),
              "messages");
        m.content += p.text("text");
      }
    } else {
      in.wrong("content", *content, "a string or a list of parts");
    }
    if (!settings_.ignore_unknown) in.check_all_known();
    return m;
  }

  /// Token positions at or ahead of the given byte positions.
  std::vector<int64_t> cuts(const std::vector<int32_t>& ids,
                            const std::vector<size_t>& ends) const {
    std::vector<int64_t> out;
    size_t bytes = 0, next = 0;
    for (size_t i = 0; i < ids.size() && next < ends.size(); ++i) {
      bytes += tokenizer_.token_bytes(ids[i]).size();
      for (; next < ends.size() && bytes >= ends[next]; ++next)
        out.push_back(static_cast<int64_t>(bytes == ends[next] ? i + 1 : i));
    }
    return out;
  }

  Members in_;
  const ApiSettings& settings_;
  const Tokenizer& tokenizer_;
  GenerationRequest common_;
  std::string effort_;
  ApiRequest request_;
};

}  // namespace

std::string api_error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 501:
      return "not_supported_error";
    case 503:
      return "unavailable_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string api_error_json(const ApiError& error) {
  const auto text = [](const std::string& s) { return s.empty() ? Json() : Json(s); };
  const Json body = {{"error",
                      {{"message", error.what()},
                       {"type", api_error_type(error.status)},
                       {"param", text(error.param)},
                       {"code", text(error.code)}}}};
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void check_nesting(std::string_view body) {
  constexpr size_t kMost = 1 << 16;
  const JsonBrackets brackets = count_json_brackets(body);
  if (brackets.deepest > kMaxJsonDepth)
    throw ApiError(400, str("the body is nested more than ", kMaxJsonDepth, " levels deep"));
  if (brackets.all > kMost)
    throw ApiError(400, str("the body has more than ", kMost, " lists and objects"));
}

ApiRequest parse_api_request(std::string_view body, bool chat, const ApiSettings& settings,
                             const Tokenizer& tokenizer, uint64_t seed) {
  check_nesting(body);
  Json json;
  try {
    json = Json::parse(body);
  } catch (const Json::parse_error& e) {
    throw ApiError(400, str("the body is not valid JSON: error at byte ", e.byte));
  } catch (const Json::exception&) {
    throw ApiError(400, "the body has a number that is out of range");
  }
  return Parser(json, chat, settings, tokenizer, seed).parse();
}

}  // namespace rwkv
