#pragma once
/// A conversation with one model: turns in the form of a chat template, on a state that stays.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "inference/generate.h"
#include "inference/sampler.h"
#include "inference/sequence_runner.h"
#include "inference/server/chat_template.h"

namespace rwkv {

struct ChatOptions {
  SamplingOptions sampling;
  int64_t max_tokens = 2048;      ///< of an answer, thoughts included
  std::vector<std::string> stop;  ///< end an answer, besides what the template says
  ChatTemplate chat = ChatTemplate::kWorld;
  Thinking thinking = Thinking::kPlain;
  std::string effort;  ///< after every message: "think", "think a bit", ...; empty: nothing
  std::string system;  ///< ahead of a conversation's first message; empty: nothing

  /// Throws ConfigError.
  void check() const;
};

struct ChatTurn {
  std::string reasoning, content;  ///< valid UTF-8
  /// kCancelled without a token: the turn has not happened.
  FinishReason finish = FinishReason::kLength;
  int64_t prompt_tokens = 0, tokens = 0;  ///< fed before the answer; drawn
  double prefill_seconds = 0, decode_seconds = 0;
};

/// One turn feeds the message and the beginning of the answer and draws the rest; the state goes on
/// from there, so nothing that was said is computed again. Two corrections keep the state that of
/// the conversation's text: tokens that turned out to begin the next turn (a stop string) are
/// taken back, to a copy made when the first of them was drawn; and with thinking on or off the
/// state goes back to the end of the message and reads the answer without its thoughts, in the
/// parallel form, as the template wants it for answers that lie behind (spec formats g.6).
///
/// Uses slots 0 to kSlots - 1 of the runner. Answer n of a session draws as sequence n of the seed,
/// so equal inputs and seeds give equal conversations. One thread at a time.
class ChatSession {
 public:
  static constexpr int64_t kSlots = 3;
  /// Turns that undo() can take back; each keeps a state in host memory.
  static constexpr size_t kMostUndo = 16;

  /// Runner and tokenizer must outlive the session. Throws ConfigError for bad options and for a
  /// runner with fewer slots.
  ChatSession(SequenceRunner& runner, const Tokenizer& tokenizer, ChatOptions options);

  const ChatOptions& options() const { return options_; }
  /// From the next turn on. Throws ConfigError and keeps the old ones. Another seed starts the
  /// count of answers again.
  void set_options(ChatOptions options);

  /// Receives the answer as soon as it is certain; never an incomplete character.
  using Sink = std::function<void(const ChatAnswer::Piece& piece)>;
  /// Asked before every piece of a prompt and every token; false ends the turn with what it has.
  using Wanted = std::function<bool()>;
  /// Throws ConfigError for an empty message, NonFiniteError for logits that are not finite.
  ChatTurn say(std::string_view message, const Sink& sink = {}, const Wanted& wanted = {});
  /// Another answer to the last message, which is not read again. Throws ConfigError if there is
  /// none.
  ChatTurn retry(const Sink& sink = {}, const Wanted& wanted = {});
  /// Back to before the last turn; false if there is none that is remembered.
  bool undo();
  /// A new conversation.
  void reset();

  /// The state after the last turn. `load` begins a conversation that goes on from there and has
  /// nothing to undo. Throw IoError, and ConfigError for a conversation that has not begun.
  void save(const std::string& path);
  void load(const std::string& path);

  int64_t turns() const { return turns_; }         ///< since the beginning, reset() or load()
  int64_t tokens() const { return seen_[kLive]; }  ///< that the state has seen

 private:
  /// The conversation; before a token that may begin a stop string; after the last message.
  enum Slot : int64_t { kLive, kBeforeStop, kMessage };
  struct Past {
    std::vector<std::byte> state;
    int64_t seen, turns;
  };
  void copy(Slot to, Slot from);
  /// Feeds the live state; false if it is no longer wanted. Logits in logits_.
  bool feed(std::span<const int32_t> ids, const Wanted& wanted = {});
  Past past();
  void go_back(const Past& past);
  /// From the state after the message on.
  ChatTurn answer(const Sink& sink, const Wanted& wanted);
  int32_t draw(TokenSampler& sampler, const int32_t* last);

  SequenceRunner& runner_;
  const Tokenizer& tokenizer_;
  ChatOptions options_;
  TensorView logits_;
  DrawScratch scratch_;
  std::vector<int32_t> ids_;  ///< all that the live state has seen since reset() or load()
  int64_t seen_[kSlots] = {};
  int64_t loaded_ = 0;  ///< tokens that the state had seen when it was loaded
  int64_t turns_ = 0;
  bool answerable_ = false;  ///< kMessage is the last turn's
  uint64_t answers_ = 0, draws_ = 0;
  std::vector<Past> past_;  ///< before each of the last turns
};

}  // namespace rwkv
