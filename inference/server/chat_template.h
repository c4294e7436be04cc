#pragma once
/// From chat messages to the text that RWKV models know, and from what they generate to an answer
/// (spec formats g.6).

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

struct ChatMessage {
  std::string role;  ///< system, developer, user, assistant, tool
  std::string content;
};

enum class ChatTemplate : uint8_t {
  kWorld,  ///< "User: ...\n\nAssistant: ...", of the World and G1 models
  kRaven,  ///< "Bob: ...\n\nAlice: ...", of the RWKV-4 chat models
};
/// "world", "raven". Throws ConfigError.
ChatTemplate parse_chat_template(std::string_view name);

enum class Thinking : uint8_t {
  kPlain,  ///< the prompt ends with "Assistant:": models that know nothing of thinking
  kOn,     ///< "Assistant: <think": the model thinks first (G1)
  kOff,    ///< "Assistant: <think>\n</think": it is told that it has thought
};
/// "plain", "on", "off". Throws ConfigError.
Thinking parse_thinking(std::string_view name);

struct ChatPrompt {
  std::string text;
  /// Byte positions of the ends of all messages but a last assistant's: a chat that goes on shares
  /// its text up to there.
  std::vector<size_t> ends;
};

/// Every message is cleaned: CRLF becomes LF, runs of LF one LF, both ends stripped; parts between
/// <think> and </think> of earlier answers are dropped. An assistant's message at the end is
/// continued. `effort`, unless empty, is appended to the last user message after a space ("think",
/// "think a bit", "think a lot"). Throws ConfigError for an unknown role or no message.
ChatPrompt chat_prompt(std::span<const ChatMessage> messages, ChatTemplate chat, Thinking thinking,
                       std::string_view effort = {});

/// What a prompt ends with, behind the last message: the beginning of the answer.
std::string chat_opening(ChatTemplate chat, Thinking thinking);

/// What ends an answer besides the end of the document: the beginning of the next turn.
std::vector<std::string> chat_stops(ChatTemplate chat);

/// Separates thoughts from the answer while the text comes in, and drops the blank ahead of both.
class ChatAnswer {
 public:
  /// `continued`: the answer goes on with a message of the request.
  explicit ChatAnswer(Thinking thinking, bool continued = false);
  struct Piece {
    std::string reasoning, content;
    bool empty() const { return reasoning.empty() && content.empty(); }
  };
  /// What is certain now.
  Piece push(std::string_view text);
  /// The rest.
  Piece finish();

 private:
  enum class Part : uint8_t { kMark, kThought, kText };
  Piece take(bool all);
  Thinking thinking_;
  Part part_;
  bool blank_ahead_;  ///< drop white space until the part has text
  std::string held_;
};

}  // namespace rwkv
