// Generation and evaluation on models whose behaviour is known.

#include "inference/generate.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "inference/evaluate.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using test::alphabet;
using test::bigram_model;
using test::random_ids;
using test::random_model;
using test::TestModel;

const SamplingOptions kGreedy{.temperature = 0};

class Alphabet : public testing::Test {
 protected:
  TestModel model_ = bigram_model(alphabet);
  Engine engine_{*model_.model, *model_.weights};
  ByteTokenizer bytes_;

  Generated run(const std::string& prompt, GenerateOptions o, const TextSink& sink = {}) {
    if (o.sampling.seed == 0) o.sampling.temperature = 0;
    return generate(engine_, &bytes_, bytes_.encode(prompt), o, sink);
  }
};

TEST_F(Alphabet, ContinuesUpToTheLength) {
  const Generated g = run("xa", {.max_tokens = 5});
  EXPECT_EQ(g.text, "bcdef");
  EXPECT_EQ(g.finish, FinishReason::kLength);
  EXPECT_EQ(g.ids, bytes_.encode("bcdef"));
  EXPECT_EQ(g.prompt_tokens, 2);
  EXPECT_EQ(g.decoded_tokens, 4);
  const Generated none = run("xa", {.max_tokens = 0});
  EXPECT_EQ(none.text, "");
  EXPECT_TRUE(none.ids.empty());
}

TEST_F(Alphabet, EndsAtTheEndOfTheDocument) {
  Generated g = run("6", {.max_tokens = 20});
  EXPECT_EQ(g.text, "789");
  EXPECT_EQ(g.ids.back(), kEndOfDocument);
  EXPECT_EQ(g.finish, FinishReason::kEnd);
  g = run("6", {.max_tokens = 6, .stop_at_end_of_document = false});
  EXPECT_EQ(g.text, "789ab");
  EXPECT_EQ(g.finish, FinishReason::kLength);
}

TEST_F(Alphabet, StopStringsAreNotPrinted) {
  std::string streamed;
  const Generated g = run("a", {.max_tokens = 50, .stop = {"zz", "fgh"}}, [&](auto text) {
    streamed += text;
    return true;
  });
  EXPECT_EQ(g.text, "bcde");
  EXPECT_EQ(streamed, g.text);
  EXPECT_EQ(g.finish, FinishReason::kStop);
  // What might have become a stop string is not lost when the length ends the text.
  EXPECT_EQ(run("a", {.max_tokens = 6, .stop = {"fghi"}}).text, "bcdefg");
}

TEST_F(Alphabet, TheSinkCancels) {
  std::string streamed;
  const Generated g = run("a", {.max_tokens = 50}, [&](auto text) {
    streamed += text;
    return streamed.size() < 3;
  });
  EXPECT_EQ(streamed, "bcd");
  EXPECT_EQ(g.finish, FinishReason::kCancelled);
}

TEST_F(Alphabet, AnEmptyPromptIsTheBeginningOfADocument) {
  EXPECT_EQ(run("", {.max_tokens = 3}).text, "abc");
  EXPECT_EQ(run("", {.max_tokens = 3}).prompt_tokens, 1);
  EXPECT_EQ(prompt_ids(bytes_, "a"), (std::vector<int32_t>{0, 98}));
  EXPECT_EQ(prompt_ids(bytes_, "a", false), (std::vector<int32_t>{98}));
}

TEST_F(Alphabet, BadOptionsAreRefused) {
  EXPECT_THROW(run("a", {.max_tokens = -1}), ConfigError);
  EXPECT_THROW(run("a", {.stop = {""}}), ConfigError);
  EXPECT_THROW(generate(engine_, nullptr, {}, {.stop = {"x"}}), ConfigError);
}

TEST(Generate, SeedsReproduceAndDiffer) {
  const TestModel m = random_model(20, 2, 128, 257);
  Engine engine(*m.model, *m.weights, {.prefill_tokens = 8});
  const ByteTokenizer bytes;
  const auto prompt = bytes.encode("a prompt of some length");
  const auto draw = [&](uint64_t seed, uint64_t sequence) {
    return generate(engine, &bytes, prompt,
                    {.sampling = {.seed = seed}, .sequence = sequence, .max_tokens = 24})
        .ids;
  };
  const auto first = draw(1, 0);
  EXPECT_EQ(draw(1, 0), first);
  EXPECT_NE(draw(2, 0), first);
  EXPECT_NE(draw(1, 1), first);
}

TEST(Generate, GreedyFollowsTheLogits) {
  const TestModel m = random_model(21, 2, 128, 257);
  Engine engine(*m.model, *m.weights);
  const auto prompt = random_ids(21, 20, 257);
  const Generated g =
      generate(engine, nullptr, prompt,
               {.sampling = kGreedy, .max_tokens = 20, .stop_at_end_of_document = false});
  ASSERT_EQ(g.ids.size(), 20u);
  EXPECT_EQ(g.text, "");
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), g.ids.begin(), g.ids.end());
  RnnState state = engine.new_state();
  engine.all_logits(state, all, [&](int64_t first, const TensorView& logits) {
    for (int64_t t = 0; t < logits.dim(1); ++t) {
      const auto next = static_cast<size_t>(first + t + 1);
      if (next < prompt.size() || next >= all.size()) continue;
      const float* row = logits.f32() + t * 257;
      EXPECT_EQ(all[next], std::max_element(row, row + 257) - row) << "position " << next;
    }
  });
}

/// A model with more rows than the tokenizer has ids, as the World models have.
TEST(Generate, NeverDrawsIdsThatHaveNoText) {
  const TestModel m = bigram_model([](int32_t) { return 270; }, 280);
  Engine engine(*m.model, *m.weights);
  const ByteTokenizer bytes;
  const Generated with = generate(engine, &bytes, {}, {.max_tokens = 10});
  for (const int32_t id : with.ids) EXPECT_LT(id, 257);
  const Generated without = generate(engine, nullptr, {}, {.sampling = kGreedy, .max_tokens = 3});
  EXPECT_EQ(without.ids, (std::vector<int32_t>{270, 270, 270}));
}

TEST(Generate, BrokenWeightsAreReported) {
  TestModel m = random_model(22, 2, 64, 257);
  m.tensor("head.weight")[5] = std::nanf("");
  Engine engine(*m.model, *m.weights);
  const ByteTokenizer bytes;
  EXPECT_THROW(generate(engine, &bytes, {}, {}), NonFiniteError);
  EXPECT_THROW(generate(engine, &bytes, {}, {.sampling = kGreedy}), NonFiniteError);
}

TEST(Generate, NumberTokensArePiecesOfTheReferencesString) {
  const auto ids = number_tokens(ByteTokenizer());
  std::string text = ByteTokenizer().decode(ids);
  EXPECT_EQ(text, "\t 0123456789");
}

TEST(Evaluate, LossIsThatOfTheWindows) {
  const TestModel m = random_model(23, 2, 128, 257);
  Engine engine(*m.model, *m.weights, {.prefill_tokens = 16});
  const ByteTokenizer bytes;
  auto ids = random_ids(23, 90, 257);
  ids[40] = kEndOfDocument;  // a target without bytes
  constexpr int64_t kCtx = 25;
  double nats = 0;
  for (int64_t begin = 0; begin + 1 < 90; begin += kCtx) {
    RnnState state = engine.new_state();
    for (int64_t t = begin; t < std::min<int64_t>(begin + kCtx, 89); ++t) {
      const TensorView logits = engine.decode(state, {&ids[static_cast<size_t>(t)], 1});
      double sum = 0;
      for (int64_t v = 0; v < 257; ++v) sum += std::exp(double{logits.f32()[v]});
      nats += std::log(sum) - logits.f32()[ids[static_cast<size_t>(t + 1)]];
    }
  }
  const auto read = [&](int64_t begin, std::span<int32_t> out) {
    std::copy_n(ids.begin() + begin, out.size(), out.begin());
  };
  int64_t done = 0;
  const LossSum sum = evaluate_loss(engine, 90, read, kCtx, &bytes, [&](int64_t n, int64_t total) {
    EXPECT_GT(n, done);
    EXPECT_EQ(total, 89);
    done = n;
  });
  EXPECT_EQ(done, 89);
  EXPECT_EQ(sum.tokens, 89);
  const auto zeros = std::count(ids.begin() + 1, ids.end(), kEndOfDocument);
  EXPECT_GE(zeros, 1);
  EXPECT_EQ(sum.bytes, 89 - zeros);
  EXPECT_LE(std::fabs(sum.nats - nats), 1e-5 * nats);
  EXPECT_LE(std::fabs(sum.perplexity() - std::exp(nats / 89)), 1e-4 * sum.perplexity());
  EXPECT_LE(std::fabs(sum.bits_per_byte() - nats / std::log(2.0) / (89.0 - double(zeros))), 1e-4);
  const LossSum ids_only = evaluate_loss(engine, 90, read, kCtx, nullptr);
  EXPECT_EQ(ids_only.nats, sum.nats);
  EXPECT_TRUE(std::isnan(ids_only.bits_per_byte()));
  for (const int64_t batch : {2, 3, 4, 100}) {
    const LossSum together = evaluate_loss(engine, 90, read, kCtx, &bytes, {}, batch);
    EXPECT_EQ(together.tokens, sum.tokens);
    EXPECT_EQ(together.bytes, sum.bytes);
    EXPECT_LE(std::fabs(together.nats - sum.nats), 1e-6 * sum.nats) << batch;
  }
  EXPECT_THROW(evaluate_loss(engine, 90, read, kCtx, nullptr, {}, 0), ConfigError);
  EXPECT_THROW(evaluate_loss(engine, 1, read, kCtx, nullptr), IoError);
  EXPECT_THROW(evaluate_loss(engine, 90, read, 0, nullptr), ConfigError);
}

/// Against one text at a time and the recurrent form.
TEST(Evaluate, LambadaFollowsTheConvention) {
  const TestModel m = random_model(24, 2, 128, 257);
  Engine engine(*m.model, *m.weights);
  const ByteTokenizer bytes;
  const std::vector<std::string> texts = {"aa bb c", "ab bb d",   "one two three",
                                          "x y",     "ba ab efg", "some longer text ends here"};
  double nats = 0;
  for (const std::string& text : texts) {
    const size_t space = text.rfind(' ');
    RnnState state = engine.new_state();
    const int32_t start = 0;
    TensorView logits = engine.decode(state, {&start, 1});
    for (size_t i = 0; i < text.size(); ++i) {
      const int32_t id = static_cast<unsigned char>(text[i]) + 1;
      if (i >= space) {
        double sum = 0;
        for (int64_t v = 0; v < 257; ++v) sum += std::exp(double{logits.f32()[v]});
        nats += std::log(sum) - logits.f32()[id];
      }
      logits = engine.decode(state, {&id, 1});
    }
  }
  for (const int64_t batch : {1, 2, 16}) {
    const LambadaResult r = evaluate_lambada(engine, bytes, texts, batch);
    EXPECT_EQ(r.texts, 6);
    EXPECT_LE(std::fabs(r.nats - nats), 1e-5 * nats) << batch;
    EXPECT_LE(std::fabs(r.perplexity() - std::exp(nats / 6)), 1e-3 * r.perplexity());
  }
  EXPECT_THROW(evaluate_lambada(engine, bytes, std::vector<std::string>{"word"}, 1), IoError);
  EXPECT_THROW(evaluate_lambada(engine, bytes, std::vector<std::string>{"a b "}, 1), IoError);
}

TEST(Evaluate, LambadaCountsWholeWords) {
  // After a space comes "a", then the alphabet; a space comes after "d".
  const TestModel m = bigram_model([](int32_t t) { return t == 'd' + 1 ? ' ' + 1 : alphabet(t); });
  Engine engine(*m.model, *m.weights);
  const std::vector<std::string> texts = {"abcd abc", "xd abcd", "d abd", "c abc", "bd xyz"};
  for (const int64_t batch : {1, 8})
    EXPECT_EQ(evaluate_lambada(engine, ByteTokenizer(), texts, batch).correct, 2);
}

TEST(Evaluate, TasksAreDecidedByTheWholeAnswer) {
  const TestModel m = bigram_model(alphabet);
  Engine engine(*m.model, *m.weights);
  const std::vector<TaskProblem> problems = {
      {"letters", "w", "xyz\n"},   // right, with its line feed
      {"letters", "v", "wxyz"},    // right without
      {"letters", "w", "xy"},      // does not stop there
      {"letters", "w", "xyzz\n"},  // stops before
      {"letters", "w", "axz"},     // wrong at once
      {"digits", "==5", "6789"},   // ended by the end of the document
      {"digits", "==5", "678\n"},  // not ended
      {"digits", "9", ""},         // the end of the document at once
      {"letters", "z", ""},        // a line feed at once
  };
  const std::vector<bool> want = {true, true, false, false, false, true, false, true, true};
  for (const int64_t batch : {1, 2, 16}) {
    const auto outcomes = evaluate_tasks(engine, ByteTokenizer(), problems, batch);
    ASSERT_EQ(outcomes.size(), problems.size());
    for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(outcomes[i].correct, want[i]) << i;
    EXPECT_EQ(outcomes[0].output, "xyz\n");
    EXPECT_EQ(outcomes[4].output, "x");
    const auto scores = task_scores(problems, outcomes);
    ASSERT_EQ(scores.size(), 2u);
    EXPECT_EQ(scores[0].task, "letters");
    EXPECT_EQ(scores[0].problems, 6);
    EXPECT_EQ(scores[0].correct, 3);
    EXPECT_EQ(scores[1].correct, 2);
    EXPECT_EQ(scores[1].accuracy(), 2.0 / 3);
  }
  EXPECT_THROW(evaluate_tasks(engine, ByteTokenizer(), problems, 0), ConfigError);
}

TEST(Evaluate, FilesNameTheLineThatIsWrong) {
  const auto path = std::filesystem::temp_directory_path() /
                    str("greylag-evaluate-", static_cast<long>(getpid()), ".jsonl");
  const auto message = [&](const std::string& content) -> std::string {
    std::ofstream(path) << content;
    try {
      read_tasks(path);
    } catch (const IoError& e) {
      return e.what();
    }
    return "";
  };
  const std::string good = R"({"task": "t", "prompt": "p", "answer": "a"})";
  EXPECT_EQ(message(good + "\r\n\n" + good), "");
  EXPECT_EQ(read_tasks(path).size(), 2u);
  EXPECT_NE(message(good + "\n{").find("line 2: not a JSON object"), std::string::npos);
  EXPECT_NE(message(R"({"task": "t", "prompt": 5, "answer": "a"})").find("\"prompt\""),
            std::string::npos);
  EXPECT_NE(message("\n").find("no problems"), std::string::npos);
  EXPECT_THROW(read_lambada(path), IoError);
  std::filesystem::remove(path);
  EXPECT_THROW(read_lambada(path), IoError);
}

}  // namespace
}  // namespace rwkv
