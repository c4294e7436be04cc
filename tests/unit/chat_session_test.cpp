// Conversations: the state after a turn is that of the conversation's text, whatever ended the
// turn.

#include <gtest/gtest.h>

#include "inference/chat_session.h"
#include "inference/serving.h"
#include "inference/state_file.h"
#include "tests/unit/data_test_util.h"
#include "tests/unit/inference_fake_runner.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using test::error_of;

/// Says what it is told to. States are hashes of all ids seen, so equal states mean equal ids.
class Actor : public test::FakeRunner {
 public:
  Actor() : FakeRunner(ChatSession::kSlots + 1, 4) {}
  /// The next answer; behind its end comes the end of the document.
  void will_say(std::vector<int32_t> ids) {
    part_ = std::move(ids);
    at_ = 0;
  }
  TensorView prefill(int64_t slot, std::span<const int32_t> ids) override {
    return speak(FakeRunner::prefill(slot, ids));
  }
  TensorView decode(std::span<const int64_t> slots, std::span<const int32_t> ids) override {
    ++at_;
    return speak(FakeRunner::decode(slots, ids));
  }
  /// The state after these ids.
  uint64_t after(std::span<const int32_t> ids) {
    constexpr int64_t kSpare = ChatSession::kSlots;
    reset(kSpare);
    if (!ids.empty()) FakeRunner::prefill(kSpare, ids);
    return state_of(kSpare);
  }
  uint64_t state_of(int64_t slot) {
    uint64_t hash = 0;
    save(slot, std::as_writable_bytes(std::span(&hash, 1)));
    return hash;
  }
  int64_t fed() const {  ///< in the parallel form
    int64_t n = 0;
    for (const Call& c : calls()) n += c.decode ? 0 : c.tokens;
    return n;
  }

 private:
  TensorView speak(TensorView logits) {
    std::fill_n(logits.f32(), 257, 0.0f);
    logits.f32()[at_ < part_.size() ? part_[at_] : kEndOfDocument] = 100;
    return logits;
  }
  std::vector<int32_t> part_;
  size_t at_ = 0;
};

struct Stage {
  explicit Stage(ChatOptions options = {}) : session(actor, tokenizer, std::move(options)) {}
  ChatTurn say(const std::string& message, const std::string& answer) {
    actor.will_say(tokenizer.encode(answer));
    return session.say(message);
  }
  void expect_state(const std::string& text) {
    EXPECT_EQ(actor.state_of(0), actor.after(tokenizer.encode(text))) << text;
    EXPECT_EQ(session.tokens(), std::ssize(text));
  }
  ByteTokenizer tokenizer;
  Actor actor;
  ChatSession session;
};

TEST(ChatSession, TheStateIsThatOfTheConversation) {
  Stage s;
  const ChatTurn first = s.say("hello\n\nyou ", " Hi there.");
  EXPECT_EQ(first.content, "Hi there.");
  EXPECT_EQ(first.reasoning, "");
  EXPECT_EQ(first.finish, FinishReason::kEnd);
  EXPECT_EQ(first.tokens, 11);
  std::string text = "User: hello\nyou\n\nAssistant: Hi there.";
  EXPECT_EQ(first.prompt_tokens, std::ssize(text) - 10);
  s.expect_state(text);
  const int64_t fed = s.actor.fed();
  const ChatTurn second = s.say("more", " No.");
  EXPECT_EQ(second.content, "No.");
  // Nothing that was said before is read again.
  const std::string asked = "\n\nUser: more\n\nAssistant:";
  EXPECT_EQ(second.prompt_tokens, std::ssize(asked));
  text += asked + " No.";
  EXPECT_EQ(s.actor.fed() - fed, std::ssize(asked));
  s.expect_state(text);
  EXPECT_EQ(s.session.turns(), 2);
}

TEST(ChatSession, StopStringsAreTakenBack) {
  for (const char* rest : {"\n\nUser:", "\n\nSystem: you", "\n\n\n\nUser: x", "Us\n\nUser: x"}) {
    Stage s;
    const ChatTurn t = s.say("a", str(" b\n\nUsed\n\n", rest));
    EXPECT_EQ(t.finish, FinishReason::kStop) << rest;
    const std::string said = std::string(" b\n\nUsed\n\n") + rest;
    const std::string kept =
        said.substr(0, std::min(said.find("\n\nUser:"), said.find("\n\nSystem:")));
    EXPECT_EQ(t.content, kept.substr(1)) << rest;
    s.expect_state("User: a\n\nAssistant:" + kept);
    s.say("c", " d");
    s.expect_state("User: a\n\nAssistant:" + kept + "\n\nUser: c\n\nAssistant: d");
  }
}

TEST(ChatSession, AnswersEndAtTheirLengthAndWhenTheyAreNotWanted) {
  Stage s({.max_tokens = 5});
  EXPECT_EQ(s.say("a", " long text").finish, FinishReason::kLength);
  s.expect_state("User: a\n\nAssistant: long");
  // In the middle of what may be a stop string.
  EXPECT_EQ(s.say("b", " c\n\nUser:").content, "c\n\nU");
  std::string text = "User: a\n\nAssistant: long\n\nUser: b\n\nAssistant: c\n\nU";
  s.expect_state(text);
  // In the middle of an answer.
  s.actor.will_say(s.tokenizer.encode(" defg"));
  int64_t drawn = 0;
  ChatTurn t = s.session.say(
      "d", [&](const ChatAnswer::Piece&) { ++drawn; }, [&] { return drawn < 2; });
  EXPECT_EQ(t.finish, FinishReason::kCancelled);
  EXPECT_EQ(t.content, "de");
  text += "\n\nUser: d\n\nAssistant: de";
  s.expect_state(text);
  EXPECT_EQ(s.session.turns(), 3);
  // While the message is read: nothing has happened.
  int64_t asked = 0;
  t = s.session.say(std::string(100, 'x'), {}, [&] { return ++asked < 5; });
  EXPECT_EQ(t.finish, FinishReason::kCancelled);
  EXPECT_EQ(t.tokens, 0);
  s.expect_state(text);
  EXPECT_EQ(s.session.turns(), 3);
}

TEST(ChatSession, ThoughtsAreNotRemembered) {
  Stage s({.thinking = Thinking::kOn, .effort = "think a bit", .system = "Be kind."});
  const ChatTurn t = s.say("a", "> Hm.\n\nNow: </think>\n\nYes.\n\nUser: b");
  EXPECT_EQ(t.reasoning, "Hm.\n\nNow: ");
  EXPECT_EQ(t.content, "Yes.");
  EXPECT_EQ(t.finish, FinishReason::kStop);
  std::string text = "System: Be kind.\n\nUser: a think a bit\n\nAssistant: Yes.";
  s.expect_state(text);
  ChatOptions off = s.session.options();
  off.thinking = Thinking::kOff;
  off.effort = "";
  s.session.set_options(off);
  const ChatTurn second = s.say("b", ">\nNo.");
  EXPECT_EQ(second.reasoning, "");
  EXPECT_EQ(second.content, "No.");
  text += "\n\nUser: b\n\nAssistant: No.";
  s.expect_state(text);
  // It never came to an answer.
  off.thinking = Thinking::kOn;
  off.max_tokens = 4;
  s.session.set_options(off);
  EXPECT_EQ(s.say("c", "> Hm.").content, "");
  s.expect_state(text + "\n\nUser: c\n\nAssistant: ");
}

TEST(ChatSession, UndoAndRetry) {
  Stage s;
  EXPECT_FALSE(s.session.undo());
  EXPECT_NE(error_of<ConfigError>([&] { s.session.retry(); }).find("no message"),
            std::string::npos);
  s.say("a", " b");
  const std::string one = "User: a\n\nAssistant: b";
  s.say("c", " d");
  const int64_t fed = s.actor.fed();
  s.actor.will_say(s.tokenizer.encode(" e"));
  EXPECT_EQ(s.session.retry().content, "e");
  EXPECT_EQ(s.actor.fed() - fed, 10) << "more than 'Assistant:' was read";
  s.expect_state(one + "\n\nUser: c\n\nAssistant: e");
  EXPECT_EQ(s.session.turns(), 2);
  EXPECT_TRUE(s.session.undo());
  s.expect_state(one);
  EXPECT_NE(error_of<ConfigError>([&] { s.session.retry(); }).find("no message"),
            std::string::npos);
  EXPECT_TRUE(s.session.undo());
  EXPECT_EQ(s.actor.state_of(0), s.actor.after({}));
  EXPECT_EQ(s.session.turns(), 0);
  EXPECT_FALSE(s.session.undo());
  s.say("x", " y");
  s.expect_state("User: x\n\nAssistant: y");
  s.session.reset();
  EXPECT_EQ(s.session.tokens(), 0);
  EXPECT_FALSE(s.session.undo());
  for (size_t i = 0; i < ChatSession::kMostUndo + 3; ++i) s.say("a", " b");
  size_t undone = 0;
  while (s.session.undo()) ++undone;
  EXPECT_EQ(undone, ChatSession::kMostUndo);
  EXPECT_EQ(s.session.turns(), 3);
}

/// Tokens of several bytes: one that holds the end of the answer and the beginning of the stop
/// string leaves its first part.
TEST(ChatSession, StopStringsWithinTokens) {
  class Joined : public Tokenizer {  // 200 is "x\n", 201 "\nUser: y"
   public:
    std::string_view name() const override { return "bytes"; }
    const std::string& hash() const override { return bytes_.hash(); }
    int32_t vocab_size() const override { return 257; }
    std::string_view token_bytes(int32_t id) const override {
      return id == 200 ? "x\n" : id == 201 ? "\nUser: y" : bytes_.token_bytes(id);
    }
    void encode_to(std::string_view text, std::vector<int32_t>& ids) const override {
      bytes_.encode_to(text, ids);
    }
    size_t safe_cut(std::string_view text, size_t /*from*/) const override { return text.size(); }
    std::string_view vocabulary() const override { return {}; }

   private:
    ByteTokenizer bytes_;
  };
  const Joined tokenizer;
  Actor actor;
  ChatSession session(actor, tokenizer, {});
  actor.will_say({33, 98, 200, 201});  // " a", "x\n", "\nUser: y"
  const ChatTurn t = session.say("q");
  EXPECT_EQ(t.content, "ax");
  EXPECT_EQ(t.finish, FinishReason::kStop);
  EXPECT_EQ(actor.state_of(0), actor.after(ByteTokenizer().encode("User: q\n\nAssistant: ax")));
}

TEST(ChatSession, MistakesAreExplained) {
  Stage s;
  EXPECT_NE(error_of<ConfigError>([&] { s.session.say(" \n"); }).find("empty"), std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] { s.session.save("x"); }).find("nothing has been said"),
            std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] { Stage bad({.max_tokens = 0}); }).find("max_tokens"),
            std::string::npos);
  ChatOptions bad = s.session.options();
  bad.sampling.top_p = 2;
  EXPECT_NE(error_of<ConfigError>([&] { s.session.set_options(bad); }).find("top_p"),
            std::string::npos);
  EXPECT_EQ(s.session.options().sampling.top_p, 1);
  test::FakeRunner small(2, 4);
  EXPECT_NE(
      error_of<ConfigError>([&] { ChatSession session(small, s.tokenizer, {}); }).find("slots"),
      std::string::npos);
}

/// A model, drawn answers and files.
TEST(ChatSession, SeedsFilesAndAModel) {
  const test::TempDir dir;
  const test::TestModel m = test::random_model(5, 2, 64, 257);
  const ByteTokenizer tokenizer;
  ServingOptions serving;
  serving.runner.slots = ChatSession::kSlots;
  const auto make = [&] { return make_serving(*m.model, *m.weights, serving); };
  const auto a = make(), b = make(), c = make();
  const ChatOptions options{.sampling = {.seed = 3}, .max_tokens = 40};
  ChatSession one(a->runner(), tokenizer, options), other(b->runner(), tokenizer, options);
  std::string shown;
  const std::string first =
      one.say("hello", [&](const auto& piece) { shown += piece.content; }).content;
  EXPECT_EQ(shown, first);
  EXPECT_EQ(other.say("hello").content, first);
  one.save(dir.file("state"));
  const std::string second = one.say("go on").content;
  EXPECT_EQ(other.say("go on").content, second);
  EXPECT_NE(other.retry().content, second);
  // From a file the conversation goes on, with the draws of a new session: greedily they are equal.
  ChatOptions greedy = options;
  greedy.sampling.temperature = 0;
  ChatSession loaded(c->runner(), tokenizer, greedy);
  loaded.load(dir.file("state"));
  EXPECT_FALSE(loaded.undo());
  one.undo();
  one.set_options(greedy);
  EXPECT_EQ(loaded.tokens(), one.tokens());
  EXPECT_EQ(loaded.say("what?").content, one.say("what?").content);
  // A file that is none leaves the conversation alone.
  const int64_t tokens = loaded.tokens();
  EXPECT_NE(error_of<IoError>([&] { loaded.load(dir.file("none")); }), "");
  EXPECT_EQ(loaded.tokens(), tokens);
  EXPECT_EQ(loaded.retry().content, one.retry().content);
}

/// The parts of a state that is kept as inference/decode_runner.h does.
TEST(ChatSession, StatesOfTheDecodingKernelsHaveTheNamesOfFiles) {
  const test::TestModel m = test::random_model(5, 2, 128, 257);
  const ModelConfig& config = m.model->config();
  for (const bool half : {false, true}) {
    const std::vector<SequenceRunner::StateTensor> kept = {
        {"shift_states", TensorSpec({1, 2 * 2 * 128}, DType::kF16), 0},
        {"wkv_states", TensorSpec({2, 2, 64, 64}, half ? DType::kF16 : DType::kF32), 1024,
         half ? 0.5f : 1},
        {"wkv_exponents", TensorSpec({1, 256}, DType::kI8), 1024 + (half ? 32768u : 65536u)},
        {"elapsed", TensorSpec({1, 1}, DType::kI32), 1024 + (half ? 32768u : 65536u) + 256}};
    const auto parts = state_file_layout(config, kept);
    const auto specs = m.model->state_specs(1, DType::kF16, half ? "fp16-dithered" : "serial");
    const size_t extra = half ? 0 : 1;  // f32 states have no counter
    ASSERT_EQ(parts.size(), specs.size() + extra);
    std::vector<bool> covered(kept.back().offset + 4);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i < specs.size()) {
        EXPECT_EQ(parts[i].name, specs[i].name);
        EXPECT_EQ(parts[i].spec.dtype, specs[i].spec.dtype) << parts[i].name;
        EXPECT_EQ(parts[i].spec.numel(), specs[i].spec.numel()) << parts[i].name;
      }
      for (size_t n = 0; n < parts[i].spec.bytes(); ++n) {
        ASSERT_LT(parts[i].offset + n, covered.size());
        EXPECT_FALSE(covered[parts[i].offset + n]) << parts[i].name;
        covered[parts[i].offset + n] = true;
      }
    }
    EXPECT_EQ(parts.back().name, "elapsed");
    EXPECT_EQ(std::ranges::count(covered, false), half ? 0 : 256);
    EXPECT_EQ(parts[1].scale, half ? 0.5f : 1);
    // Layer 1's channel mix is the last row of shifts.
    const auto shift =
        std::ranges::find(parts, "blocks.1.ffn.shift_state", &SequenceRunner::StateTensor::name);
    ASSERT_NE(shift, parts.end());
    EXPECT_EQ(shift->offset, 3u * 128 * 2);
  }
  const std::vector<SequenceRunner::StateTensor> named = {
      {"blocks.0.att.wkv_state", TensorSpec({1, 2, 64, 64}), 0}};
  EXPECT_EQ(state_file_layout(config, named).size(), 1u);
}

}  // namespace
}  // namespace rwkv
