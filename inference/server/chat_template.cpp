#include "inference/server/chat_template.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

constexpr std::string_view kThinkBegin = "<think>", kThinkEnd = "</think>";
constexpr std::string_view kBlanks = " \t\r\n";

struct Names {
  std::string_view system, user, assistant;
};

Names names_of(ChatTemplate chat) {
  if (chat == ChatTemplate::kRaven) return {"", "Bob: ", "Alice:"};
  return {"System: ", "User: ", "Assistant:"};
}

std::string clean(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    if (c == '\n' && out.ends_with('\n')) continue;
    out += c;
  }
  const size_t begin = out.find_first_not_of(kBlanks);
  if (begin == std::string::npos) return "";
  return out.substr(begin, out.find_last_not_of(kBlanks) - begin + 1);
}

/// One pass, for texts come from outside: a mark that closes when a part before its end is dropped
/// counts as well, so what is kept is looked at, not the text.
std::string without_thoughts(std::string_view text) {
  std::string kept;
  for (size_t i = 0; i < text.size();) {
    kept += text[i++];
    if (kept.back() != kThinkBegin.back() || !kept.ends_with(kThinkBegin)) continue;
    kept.resize(kept.size() - kThinkBegin.size());
    const size_t end = text.find(kThinkEnd, i);
    if (end == std::string_view::npos) break;
    i = end + kThinkEnd.size();
  }
  return kept;
}

/// Length of the longest end of `text` that is the beginning of `mark`.
size_t partial_mark(std::string_view text, std::string_view mark) {
  for (size_t n = std::min(text.size(), mark.size() - 1); n > 0; --n)
    if (text.ends_with(mark.substr(0, n))) return n;
  return 0;
}

}  // namespace

ChatTemplate parse_chat_template(std::string_view name) {
  if (name == "world") return ChatTemplate::kWorld;
  if (name == "raven") return ChatTemplate::kRaven;
  throw ConfigError(str("chat template '", name, "', expected world or raven"));
}

Thinking parse_thinking(std::string_view name) {
  if (name == "plain") return Thinking::kPlain;
  if (name == "on") return Thinking::kOn;
  if (name == "off") return Thinking::kOff;
  throw ConfigError(str("thinking '", name, "', expected plain, on or off"));
}

ChatPrompt chat_prompt(std::span<const ChatMessage> messages, ChatTemplate chat, Thinking thinking,
                       std::string_view effort) {
  RWKV_CHECK(!messages.empty(), ConfigError, "messages is empty, expected at least one message");
  const Names names = names_of(chat);
  size_t last_user = messages.size();
  for (size_t i = 0; i < messages.size(); ++i)
    if (messages[i].role == "user") last_user = i;
  ChatPrompt prompt;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& m = messages[i];
    std::string text = clean(m.role == "assistant" ? without_thoughts(m.content) : m.content);
    if (i == last_user && !effort.empty()) text += str(" ", effort);
    if (m.role == "system" || m.role == "developer") {
      prompt.text += str(names.system, text);
    } else if (m.role == "user") {
      prompt.text += str(names.user, text);
    } else if (m.role == "tool" || m.role == "function") {
      prompt.text += str(names.user, "Function output:\n", text);
    } else if (m.role == "assistant") {
      prompt.text += str(names.assistant, " ", text);
      if (i + 1 == messages.size()) return prompt;
    } else {
      throw ConfigError(str("messages[", i, "].role is '", m.role,
                            "', expected system, developer, user, assistant or tool"));
    }
    prompt.text += "\n\n";
    prompt.ends.push_back(prompt.text.size());
  }
  prompt.text += chat_opening(chat, thinking);
  return prompt;
}

std::string chat_opening(ChatTemplate chat, Thinking thinking) {
  std::string text(names_of(chat).assistant);
  if (thinking == Thinking::kOn) text += " <think";
  if (thinking == Thinking::kOff) text += " <think>\n</think";
  return text;
}

std::vector<std::string> chat_stops(ChatTemplate chat) {
  const Names names = names_of(chat);
  std::vector<std::string> stops;
  for (const std::string_view name : {names.system, names.user})
    if (!name.empty()) stops.push_back(str("\n\n", name.substr(0, name.size() - 1)));
  return stops;
}

ChatAnswer::ChatAnswer(Thinking thinking, bool continued)
    : thinking_(thinking),
      part_(continued || thinking == Thinking::kPlain ? Part::kText : Part::kMark),
      blank_ahead_(!continued) {}

ChatAnswer::Piece ChatAnswer::push(std::string_view text) {
  held_ += text;
  return take(false);
}

ChatAnswer::Piece ChatAnswer::finish() {
  return take(true);
}

ChatAnswer::Piece ChatAnswer::take(bool all) {
  Piece piece;
  if (part_ == Part::kMark) {
    if (held_.empty()) return piece;
    // The prompt has all of the mark but its ">".
    const bool marked = held_.starts_with('>');
    if (marked) held_.erase(0, 1);
    part_ = marked && thinking_ == Thinking::kOn ? Part::kThought : Part::kText;
  }
  const auto give = [&](std::string& to, size_t n) {
    std::string_view text = std::string_view(held_).substr(0, n);
    if (blank_ahead_) {
      const size_t begin = std::min(text.find_first_not_of(kBlanks), text.size());
      text.remove_prefix(begin);
      blank_ahead_ = text.empty();
    }
    to += text;
    held_.erase(0, n);
  };
  if (part_ == Part::kThought) {
    const size_t end = held_.find(kThinkEnd);
    if (end == std::string::npos) {
      give(piece.reasoning, all ? held_.size() : held_.size() - partial_mark(held_, kThinkEnd));
      return piece;
    }
    give(piece.reasoning, end);
    held_.erase(0, kThinkEnd.size());
    part_ = Part::kText;
    blank_ahead_ = true;
  }
  give(piece.content, held_.size());
  return piece;
}

}  // namespace rwkv
