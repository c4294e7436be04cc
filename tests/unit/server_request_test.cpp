// Chat templates, the reading of API requests, and what is shown of a state.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "inference/server/api_request.h"
#include "inference/server/state_view.h"
#include "kernels/core/half.h"
#include "kernels/core/trace.h"

namespace rwkv {
namespace {

std::string prompt(std::vector<ChatMessage> messages, Thinking thinking = Thinking::kPlain,
                   std::string_view effort = {}, ChatTemplate chat = ChatTemplate::kWorld) {
  return chat_prompt(messages, chat, thinking, effort).text;
}

TEST(ChatTemplate, IsTheOneThatModelsKnow) {
  EXPECT_EQ(prompt({{"user", "hi"}}), "User: hi\n\nAssistant:");
  EXPECT_EQ(prompt({{"system", "be kind"}, {"user", "hi"}}),
            "System: be kind\n\nUser: hi\n\nAssistant:");
  EXPECT_EQ(prompt({{"user", "q1"}, {"assistant", "a1"}, {"user", "q2"}}),
            "User: q1\n\nAssistant: a1\n\nUser: q2\n\nAssistant:");
  EXPECT_EQ(prompt({{"developer", "x"}, {"user", "y"}}), "System: x\n\nUser: y\n\nAssistant:");
  EXPECT_EQ(prompt({{"user", "y"}, {"tool", "{1}"}}),
            "User: y\n\nUser: Function output:\n{1}\n\nAssistant:");
  EXPECT_EQ(prompt({{"user", "hi"}}, Thinking::kOn), "User: hi\n\nAssistant: <think");
  EXPECT_EQ(prompt({{"user", "hi"}}, Thinking::kOff), "User: hi\n\nAssistant: <think>\n</think");
  EXPECT_EQ(prompt({{"user", "hi"}}, Thinking::kOn, "think a lot"),
            "User: hi think a lot\n\nAssistant: <think");
  EXPECT_EQ(prompt({{"user", "hi"}}, Thinking::kPlain, {}, ChatTemplate::kRaven),
            "Bob: hi\n\nAlice:");
  EXPECT_EQ(prompt({{"user", "count"}, {"assistant", "one, two"}}, Thinking::kOn),
            "User: count\n\nAssistant: one, two");
}

TEST(ChatTemplate, CleansMessages) {
  EXPECT_EQ(prompt({{"user", "  a\r\n\r\n\r\nb\n \n"}}), "User: a\nb\n\nAssistant:");
  EXPECT_EQ(prompt({{"user", "a\rb"}}), "User: a\rb\n\nAssistant:");
  EXPECT_EQ(prompt({{"user", "q"}, {"assistant", "<think>\nhm\n\nhm</think>\nyes"}, {"user", "r"}}),
            "User: q\n\nAssistant: yes\n\nUser: r\n\nAssistant:");
  EXPECT_EQ(prompt({{"user", "q"}, {"assistant", "no <think>never ends"}, {"user", "r"}}),
            "User: q\n\nAssistant: no\n\nUser: r\n\nAssistant:");
  const auto answer = [](const std::string& text) {
    const std::string all = prompt({{"user", "q"}, {"assistant", text}, {"user", "r"}});
    const std::string_view before = "User: q\n\nAssistant: ", after = "\n\nUser: r\n\nAssistant:";
    EXPECT_TRUE(all.starts_with(before) && all.ends_with(after)) << all;
    return all.substr(before.size(), all.size() - before.size() - after.size());
  };
  EXPECT_EQ(answer("a<think>1</think>b<think>2</think>c"), "abc");
  EXPECT_EQ(answer("a<think>1<think>2</think>b</think>c"), "ab</think>c");
  EXPECT_EQ(answer("a</think>b<think></think>c"), "a</think>bc");
  // Dropping one part may close another mark, with and without an end.
  EXPECT_EQ(answer("a<thi<think>1</think>nk>2</think>b"), "ab");
  EXPECT_EQ(answer("a<t<think>1</think>h<think>2</think>ink>3"), "a");
  // A user may write about thinking.
  EXPECT_EQ(prompt({{"user", "<think>x</think>"}}), "User: <think>x</think>\n\nAssistant:");
  EXPECT_THROW(prompt({}), ConfigError);
  EXPECT_THROW(prompt({{"cat", "x"}}), ConfigError);
}

/// Twice the largest body of a server with default limits, all thoughts: some milliseconds, and
/// more than a minute if every part that is dropped moves the rest.
TEST(ChatTemplate, ManyThoughtsTakeLinearTime) {
  std::string text = "x";
  while (text.size() < size_t{8} << 20) text += "<think></think>";
  const double start = now_seconds();
  EXPECT_EQ(prompt({{"user", "q"}, {"assistant", text + "y"}, {"user", "r"}}),
            "User: q\n\nAssistant: xy\n\nUser: r\n\nAssistant:");
  EXPECT_LT(now_seconds() - start, 10);
}

TEST(ChatTemplate, SaysWhereMessagesEnd) {
  const std::vector<ChatMessage> m = {{"system", "s"}, {"user", "q"}, {"assistant", "a"}};
  const ChatPrompt p = chat_prompt(m, ChatTemplate::kWorld, Thinking::kPlain);
  ASSERT_EQ(p.ends.size(), 2U);
  EXPECT_EQ(p.text.substr(0, p.ends[0]), "System: s\n\n");
  EXPECT_EQ(p.text.substr(0, p.ends[1]), "System: s\n\nUser: q\n\n");
}

/// However the text is cut.
void expect_answer(Thinking thinking, const std::string& text, const std::string& reasoning,
                   const std::string& content, bool continued = false) {
  for (size_t step = 1; step <= text.size(); ++step) {
    ChatAnswer answer(thinking, continued);
    ChatAnswer::Piece all;
    const auto add = [&](ChatAnswer::Piece p) {
      all.reasoning += p.reasoning;
      all.content += p.content;
    };
    for (size_t i = 0; i < text.size(); i += step) add(answer.push(text.substr(i, step)));
    add(answer.finish());
    EXPECT_EQ(all.reasoning, reasoning) << text << ", pieces of " << step;
    EXPECT_EQ(all.content, content) << text << ", pieces of " << step;
  }
}

TEST(ChatAnswer, SeparatesThoughts) {
  expect_answer(Thinking::kPlain, " hello", "", "hello");
  expect_answer(Thinking::kPlain, " <think>x</think> y", "", "<think>x</think> y");
  expect_answer(Thinking::kOn, ">\nhm, a < b\n</think>\n\nyes", "hm, a < b\n", "yes");
  expect_answer(Thinking::kOn, ">never ends </thin", "never ends </thin", "");
  expect_answer(Thinking::kOn, " no thoughts", "", "no thoughts");
  expect_answer(Thinking::kOff, ">\n\nyes", "", "yes");
  expect_answer(Thinking::kOff, " yes", "", "yes");
  expect_answer(Thinking::kOn, " and on", "", " and on", true);
}

struct Reader {
  ByteTokenizer tokenizer;
  ApiSettings settings{.model = "m", .vocab = 257};
  ApiRequest operator()(const std::string& body, bool chat = false) const {
    return parse_api_request(body, chat, settings, tokenizer, 77);
  }
};

TEST(ApiRequest, DefaultsAndMembers) {
  const Reader read;
  const ApiRequest plain = read(R"({"prompt": "hi"})");
  ASSERT_EQ(plain.prompts.size(), 1U);
  EXPECT_EQ(plain.prompts[0].prompt, (std::vector<int32_t>{0, 'h' + 1, 'i' + 1}));
  EXPECT_EQ(plain.prompts[0].max_tokens, 16);
  EXPECT_EQ(plain.prompts[0].sampling.temperature, 1);
  EXPECT_EQ(plain.prompts[0].sampling.seed, 77U);
  EXPECT_FALSE(plain.stream);
  const GenerationRequest r =
      read(R"({"prompt": [5, 6], "max_tokens": 3, "temperature": 0.5, "top_p": 0.3, "top_k": 4,
               "min_p": 0.1, "presence_penalty": 0.2, "frequency_penalty": 0.3,
               "penalty_decay": 0.99, "repetition_penalty": 1.1, "seed": -1, "n": 2,
               "stop": ["a", "b"], "stop_token_ids": [9], "ignore_eos": true, "logprobs": 3,
               "logit_bias": {"7": -1.5}, "banned_token_ids": [8], "user": "me", "suffix": null,
               "best_of": 2, "model": "m"})")
          .prompts[0];
  EXPECT_EQ(r.prompt, (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(r.max_tokens, 3);
  EXPECT_EQ(r.sampling.temperature, 0.5);
  EXPECT_EQ(r.sampling.top_p, 0.3);
  EXPECT_EQ(r.sampling.top_k, 4);
  EXPECT_EQ(r.sampling.min_p, 0.1);
  EXPECT_EQ(r.sampling.presence_penalty, 0.2);
  EXPECT_EQ(r.sampling.frequency_penalty, 0.3);
  EXPECT_EQ(r.sampling.penalty_decay, 0.99);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.1);
  EXPECT_EQ(r.sampling.seed, UINT64_MAX);
  EXPECT_EQ(r.samples, 2);
  EXPECT_EQ(r.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(r.stop_tokens, std::vector<int32_t>{9});
  EXPECT_FALSE(r.stop_at_end_of_document);
  EXPECT_EQ(r.top_log_probs, 3);
  EXPECT_EQ(r.sampling.logit_bias, (std::vector<std::pair<int32_t, float>>{{7, -1.5f}}));
  EXPECT_EQ(r.sampling.banned_tokens, std::vector<int32_t>{8});
  EXPECT_EQ(read(R"({"prompt": "hi", "add_special_tokens": false})").prompts[0].prompt.size(), 2U);
  EXPECT_EQ(read(R"({"prompt": ""})").prompts[0].prompt, std::vector<int32_t>{0});
  EXPECT_EQ(read(R"({"prompt": ["a", "b"], "n": 2})").choices(), 4);
  Reader lenient;
  lenient.settings.ignore_unknown = true;
  EXPECT_EQ(lenient(R"({"prompt": "a", "frobnicate": 1})").choices(), 1);
}

TEST(ApiRequest, TokenListsAreOfTheVocabulary) {
  const Reader read;
  const auto r = read(R"({"prompt": "a", "stop_token_ids": [9, 256, 3, 9, 0, 3],
                          "banned_token_ids": [7, 256, 7]})")
                     .prompts[0];
  EXPECT_EQ(r.stop_tokens, (std::vector<int32_t>{0, 3, 9, 256}));
  EXPECT_EQ(r.sampling.banned_tokens, (std::vector<int32_t>{7, 256}));
  EXPECT_EQ(read(R"({"prompt": "a", "stop_tokens": 5})").prompts[0].stop_tokens,
            std::vector<int32_t>{5});
  const auto refused = [&](const std::string& member, const std::string& value) {
    try {
      read(str(R"({"prompt": "a", ")", member, "\": ", value, "}"));
      ADD_FAILURE() << member << " " << value << " was taken";
    } catch (const ApiError& e) {
      EXPECT_EQ(e.status, 400);
      EXPECT_EQ(e.param, member);
      EXPECT_TRUE(std::string_view(e.what()).starts_with(member)) << e.what();
    }
  };
  std::string many = "[1", biases = R"({"1": 1)";
  for (int i = 0; i < 257; ++i) {
    many += ", 1";
    biases += str(", \"", std::string(static_cast<size_t>(i) + 1, '0'), "1\": 1");
  }
  for (const char* member : {"stop_token_ids", "stop_tokens", "banned_token_ids"})
    for (const std::string& value : {std::string("[257]"), std::string("[-1]"),
                                     std::string("2147483648"), std::string("257"), many + "]"})
      refused(member, value);
  refused("logit_bias", R"({"257": 1})");
  refused("logit_bias", biases + "}");
}

/// A list of nothing takes three bytes of text, and twenty times that when it is parsed.
TEST(ApiRequest, BracketsAreCounted) {
  const auto lists = [](int n) {
    std::string text = "[";
    for (int i = 0; i < n; ++i) text += "[],";
    return text + "0]";
  };
  EXPECT_NO_THROW(check_nesting(lists(65000)));
  EXPECT_NO_THROW(check_nesting("{\"prompt\": \"" + lists(70000) + "\"}"));
  EXPECT_THROW(check_nesting(lists(70000)), ApiError);
}

TEST(ApiRequest, ChatsBecomePrompts) {
  const Reader read;
  const ApiRequest r = read(R"({"messages": [{"role": "system", "content": "s"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
      "max_completion_tokens": 9, "reasoning_effort": "low", "logprobs": true, "top_logprobs": 2})",
                            true);
  const GenerationRequest& g = r.prompts.at(0);
  EXPECT_EQ(read.tokenizer.decode(g.prompt),
            "System: s\n\nUser: ab think a bit\n\nAssistant: <think");
  EXPECT_EQ(g.max_tokens, 9);
  EXPECT_EQ(g.top_log_probs, 2);
  EXPECT_EQ(g.shared, (std::vector<int64_t>{11, 33}));
  EXPECT_EQ(g.stop, (std::vector<std::string>{"\n\nSystem:", "\n\nUser:"}));
  EXPECT_EQ(r.thinking, Thinking::kOn);
  const auto off = read(R"({"messages": [{"role": "user", "content": "x"}],
                            "chat_template_kwargs": {"enable_thinking": false}})",
                        true);
  EXPECT_EQ(off.thinking, Thinking::kOff);
}

TEST(StateView, ShowsTheNumbersThatAScaledStateStandsFor) {
  const TensorSpec half({1, 2, 4, 4}, DType::kF16), exponent({1, 2, 4}, DType::kI8), shift({1, 8});
  const std::vector<SequenceRunner::StateTensor> layout = {
      {"blocks.0.att.wkv_state", half, 0, 1.0F / 256},
      {"blocks.0.att.wkv_exponent", exponent, half.bytes(), 1},
      {"blocks.0.att.shift_state", shift, half.bytes() + exponent.bytes(), 1}};
  StateSnapshot snapshot;
  snapshot.bytes.resize(half.bytes() + exponent.bytes() + shift.bytes());
  const F16 x = half_bits(-3.0F);
  std::memcpy(snapshot.bytes.data() + 2 * 5, &x, 2);
  const std::vector<StateLayer> layers = wkv_layers(layout, snapshot);
  ASSERT_EQ(layers.size(), 1u);
  EXPECT_EQ(layers[0].heads, 2);
  EXPECT_EQ(layers[0].values[5], -768.0F);
  // The second row's exponent: 2^8 times as much.
  snapshot.bytes[half.bytes() + 1] = std::byte{8};
  EXPECT_EQ(wkv_layers(layout, snapshot)[0].values[5], -768.0F * 256);
  EXPECT_EQ(layers[0].largest(), 768.0F);
  EXPECT_NEAR(layers[0].rms(), 768.0 / std::sqrt(32.0), 1e-3);
}

TEST(StateView, CutsATensorOfAllBlocks) {
  const TensorSpec all({3, 2, 4, 4}, DType::kF16), exponents({1, 24}, DType::kI8);
  const std::vector<SequenceRunner::StateTensor> layout = {
      {"wkv_states", all, 0, 1}, {"wkv_exponents", exponents, all.bytes(), 1}};
  StateSnapshot snapshot;
  snapshot.bytes.resize(all.bytes() + exponents.bytes());
  const F16 x = half_bits(2.0F);
  std::memcpy(snapshot.bytes.data() + 2 * (2 * 32 + 21), &x, 2);  // block 2, head 1, row 1
  snapshot.bytes[all.bytes() + 16 + 5] = std::byte{8};
  const std::vector<StateLayer> layers = wkv_layers(layout, snapshot);
  ASSERT_EQ(layers.size(), 3u);
  EXPECT_EQ(layers[0].largest(), 0);
  EXPECT_EQ(layers[2].name, "blocks.2.att.wkv_state");
  EXPECT_EQ(layers[2].heads, 2);
  EXPECT_EQ(layers[2].rows, 4);
  EXPECT_EQ(layers[2].columns, 4);
  EXPECT_EQ(layers[2].values[21], 512.0F);
}

}  // namespace
}  // namespace rwkv
