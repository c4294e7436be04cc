#include "inference/chat_session.h"

#include <algorithm>
#include <array>

#include "inference/state_file.h"
#include "inference/text_stream.h"
#include "kernels/core/error.h"
#include "kernels/core/trace.h"

namespace rwkv {

void ChatOptions::check() const {
  sampling.check();
  RWKV_CHECK(max_tokens >= 1, ConfigError, "chat: max_tokens is ", max_tokens,
             ", expected at least 1");
  const StopFinder stops(stop);
}

ChatSession::ChatSession(SequenceRunner& runner, const Tokenizer& tokenizer, ChatOptions options)
    : runner_(runner), tokenizer_(tokenizer), options_(std::move(options)) {
  options_.check();
  RWKV_CHECK(runner.slots() >= kSlots, ConfigError, "chat: a runner with ", runner.slots(),
             " slots, expected at least ", kSlots);
  reset();
}

void ChatSession::set_options(ChatOptions options) {
  options.check();
  if (options.sampling.seed != options_.sampling.seed) answers_ = 0;
  options_ = std::move(options);
}

void ChatSession::copy(Slot to, Slot from) {
  runner_.copy(to, from);
  seen_[to] = seen_[from];
  if (to == kLive) ids_.resize(static_cast<size_t>(seen_[kLive] - loaded_));
}

bool ChatSession::feed(std::span<const int32_t> ids, const Wanted& wanted) {
  while (!ids.empty()) {
    if (wanted && !wanted()) return false;
    const auto n = static_cast<size_t>(runner_.prefill_piece(std::ssize(ids)));
    logits_ = runner_.prefill(kLive, ids.first(n));
    ids_.insert(ids_.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n));
    seen_[kLive] += static_cast<int64_t>(n);
    ids = ids.subspan(n);
  }
  return true;
}

ChatSession::Past ChatSession::past() {
  Past p{std::vector<std::byte>(runner_.state_bytes()), seen_[kLive], turns_};
  runner_.save(kLive, p.state);
  return p;
}

void ChatSession::go_back(const Past& past) {
  runner_.load(kLive, past.state);
  seen_[kLive] = past.seen;
  turns_ = past.turns;
  ids_.resize(static_cast<size_t>(past.seen - loaded_));
  answerable_ = false;
}

ChatTurn ChatSession::say(std::string_view message, const Sink& sink, const Wanted& wanted) {
  std::vector<ChatMessage> messages;
  const bool begins = seen_[kLive] == 0;
  if (begins && !options_.system.empty()) messages.push_back({"system", options_.system});
  messages.push_back({"user", std::string(message)});
  const ChatPrompt prompt = chat_prompt(messages, options_.chat, Thinking::kPlain, options_.effort);
  RWKV_CHECK(message.find_first_not_of(" \t\r\n") != std::string_view::npos, ConfigError,
             "chat: the message is empty");
  // Answers end without the blank line that a turn ends with.
  const std::string text = str(begins ? "" : "\n\n", prompt.text.substr(0, prompt.ends.back()));

  Past before = past();
  const bool answerable = answerable_;
  const double start = now_seconds();
  const std::vector<int32_t> ids = tokenizer_.encode(text);
  if (!feed(ids, wanted)) {
    go_back(before);
    answerable_ = answerable;  // kMessage is still that of the turn before
    return {.finish = FinishReason::kCancelled};
  }
  copy(kMessage, kLive);
  answerable_ = true;
  past_.push_back(std::move(before));
  if (past_.size() > kMostUndo) past_.erase(past_.begin());
  ++turns_;
  const double fed = now_seconds() - start;
  ChatTurn turn = answer(sink, wanted);
  turn.prompt_tokens += std::ssize(ids);
  turn.prefill_seconds += fed;
  return turn;
}

ChatTurn ChatSession::retry(const Sink& sink, const Wanted& wanted) {
  RWKV_CHECK(answerable_, ConfigError, "chat: there is no message that could be answered again");
  copy(kLive, kMessage);
  return answer(sink, wanted);
}

int32_t ChatSession::draw(TokenSampler& sampler, const int32_t* last) {
  constexpr int64_t kSlot = kLive;
  const int64_t vocab = std::min<int64_t>(tokenizer_.vocab_size(), runner_.config().vocab_size);
  if (last == nullptr) return sampler.next({logits_.f32(), static_cast<size_t>(vocab)}, scratch_);
  const DrawRequest request{.sampler = &sampler, .id = draws_, .vocab = vocab};
  runner_.start_draws({&kSlot, 1}, {last, 1}, {&request, 1});
  ids_.push_back(*last);
  ++seen_[kLive];
  const Drawn& drawn = runner_.finish_draws().front();
  if (!drawn.error.empty()) throw NonFiniteError(drawn.error);
  return drawn.token;
}

ChatTurn ChatSession::answer(const Sink& sink, const Wanted& wanted) {
  const std::vector<int32_t> opening =
      tokenizer_.encode(chat_opening(options_.chat, options_.thinking));
  ChatTurn turn{.prompt_tokens = std::ssize(opening)};
  const double start = now_seconds();
  feed(opening);
  const double fed = now_seconds();
  turn.prefill_seconds = fed - start;

  std::vector<std::string> stops = chat_stops(options_.chat);
  stops.insert(stops.end(), options_.stop.begin(), options_.stop.end());
  TextStream stream(tokenizer_, std::move(stops));
  ChatAnswer parts(options_.thinking);
  TokenSampler sampler(options_.sampling, answers_++);
  sampler.see(ids_);
  ++draws_;
  const auto tell = [&](const ChatAnswer::Piece& piece) {
    if (piece.empty()) return;
    turn.reasoning += piece.reasoning;
    turn.content += piece.content;
    if (sink) sink(piece);
  };
  // Tokens since the state kBeforeStop that may turn out to be a stop string's.
  std::vector<int32_t> held;
  std::vector<int32_t> unread;  // drawn, of the answer, and not seen by the state
  const int32_t* last = nullptr;
  for (int32_t id = 0;; last = &id) {
    if (last != nullptr && wanted && !wanted()) {
      turn.finish = FinishReason::kCancelled;
      unread = {id};
      break;
    }
    id = draw(sampler, last);
    ++turn.tokens;
    if (id == kEndOfDocument) {
      turn.finish = FinishReason::kEnd;
      break;
    }
    tell(parts.push(stream.push(id)));
    if (stream.stopped()) {
      turn.finish = FinishReason::kStop;
      if (!held.empty()) copy(kLive, kBeforeStop);
      held.push_back(id);
      std::string text = tokenizer_.decode(held);
      text.resize(text.find(stream.stop()));
      unread = tokenizer_.encode(text);
      break;
    }
    if (!stream.holding()) {
      held.clear();
    } else {
      if (held.empty()) copy(kBeforeStop, kLive);
      held.push_back(id);
    }
    if (turn.tokens == options_.max_tokens) {
      turn.finish = FinishReason::kLength;
      unread = {id};
      break;
    }
  }
  tell(parts.push(stream.finish()));
  tell(parts.finish());
  if (options_.thinking != Thinking::kPlain) {
    copy(kLive, kMessage);
    const std::array<ChatMessage, 1> said = {{{"assistant", turn.content}}};
    unread = tokenizer_.encode(chat_prompt(said, options_.chat, Thinking::kPlain).text);
  }
  feed(unread);
  turn.decode_seconds = now_seconds() - fed;
  return turn;
}

bool ChatSession::undo() {
  if (past_.empty()) return false;
  go_back(past_.back());
  past_.pop_back();
  return true;
}

void ChatSession::reset() {
  runner_.reset(kLive);
  seen_[kLive] = loaded_ = turns_ = 0;
  ids_.clear();
  past_.clear();
  answerable_ = false;
}

void ChatSession::save(const std::string& path) {
  RWKV_CHECK(seen_[kLive] > 0, ConfigError,
             "saving the state: nothing has been said yet, expected at least one turn");
  write_state_file(path, runner_, kLive, seen_[kLive]);
}

void ChatSession::load(const std::string& path) {
  const int64_t tokens = read_state_file(path, runner_, kLive);
  seen_[kLive] = loaded_ = tokens;
  turns_ = 0;
  ids_.clear();
  past_.clear();
  answerable_ = false;
}

}  // namespace rwkv
