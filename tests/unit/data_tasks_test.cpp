// The embedded corpus: right answers, determinism, and no held-out problem in the training part.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "data/dataset.h"
#include "data/io/atomic_file.h"
#include "data/tasks.h"
#include "kernels/core/error.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

using test::TempDir;

/// What the line says, worked out independently of the generator. Empty if it is malformed.
std::string solve(const std::string& prompt) {
  const std::string body = prompt.substr(1, prompt.size() - 2);
  const char last = prompt.back();
  switch (prompt[0]) {
    case 'R':
      return last == '=' ? std::string(body.rbegin(), body.rend()) : "";
    case 'A': {
      const size_t plus = body.find('+');
      return std::to_string(std::stoi(body.substr(0, plus)) + std::stoi(body.substr(plus + 1)));
    }
    case 'P': {
      std::string order = "abcd";
      for (const char c : body) {
        const size_t i = c == 'x' ? 0 : c == 'y' ? 1 : 2;
        std::swap(order[i], order[i + 1]);
      }
      return order;
    }
    case 'K': {
      std::map<char, char> pairs;
      for (size_t i = 1; i + 2 < prompt.size() && prompt[i] != '?'; i += 2)
        pairs[prompt[i]] = prompt[i + 1];
      return pairs.contains(last) ? std::string(1, pairs[last]) : "";
    }
    default:
      return "";
  }
}

/// The part of a problem that decides about training and held-out.
std::string content(const Problem& p) {
  if (p.task == "add") {
    const size_t plus = p.prompt.find('+');
    const int a = std::stoi(p.prompt.substr(1)), b = std::stoi(p.prompt.substr(plus + 1));
    return "A" + std::to_string(std::min(a, b)) + "+" + std::to_string(std::max(a, b));
  }
  if (p.task != "recall") return p.prompt;
  std::vector<std::string> pairs;
  for (size_t i = 1; p.prompt[i] != '?'; i += 2) pairs.push_back(p.prompt.substr(i, 2));
  std::sort(pairs.begin(), pairs.end());
  std::string all = "K";
  for (const auto& pair : pairs) all += pair;
  return all;
}

TEST(Tasks, AnswersAreRightAndAllKindsOccur) {
  for (const TaskSplit split : {TaskSplit::kTrain, TaskSplit::kHeldOut}) {
    TaskGenerator g(1, split);
    std::map<std::string, int> count;
    std::set<size_t> reverse_lengths, recall_lengths;
    int asks_all = 0;
    for (int i = 0; i < 5000; ++i) {
      const Problem p = g.next();
      ++count[p.task];
      ASSERT_EQ(p.answer, solve(p.prompt)) << p.prompt;
      if (p.task == "reverse") reverse_lengths.insert(p.answer.size());
      if (p.task == "recall") recall_lengths.insert((p.prompt.size() - 3) / 2);
      const size_t star = p.line.find('*');
      if (star == std::string::npos) {
        ASSERT_EQ(p.line, p.prompt + p.answer + "\n");
        continue;
      }
      ++asks_all;
      ASSERT_EQ(p.line.size(), 2 * star + 1);
      std::set<char> asked;
      for (size_t i2 = star + 1; i2 + 1 < p.line.size(); i2 += 2) {
        asked.insert(p.line[i2]);
        ASSERT_EQ(p.line.substr(i2 + 1, 1), solve(p.line.substr(0, star) + "?" + p.line[i2]));
      }
      ASSERT_EQ(asked.size(), (star - 1) / 2);
    }
    EXPECT_EQ(reverse_lengths, (std::set<size_t>{1, 2, 3, 4, 5, 6, 7, 8}));
    EXPECT_EQ(recall_lengths, (std::set<size_t>{4, 5, 6, 7, 8}));
    EXPECT_NEAR(count["reverse"], 2000, 200);
    EXPECT_NEAR(count["recall"], 2000, 200);
    EXPECT_NEAR(count["add"], 500, 120);
    EXPECT_NEAR(count["permute"], 500, 120);
    if (split == TaskSplit::kTrain)
      EXPECT_NEAR(asks_all, 1333, 150);
    else
      EXPECT_EQ(asks_all, 0);
  }
}

TEST(Tasks, TrainingAndHeldOutAreDisjointForAllSeeds) {
  std::set<std::string> train;
  for (const uint64_t seed : {1, 2, 99}) {
    TaskGenerator g(seed, TaskSplit::kTrain);
    for (int i = 0; i < 20000; ++i) train.insert(content(g.next()));
  }
  TaskGenerator held(7, TaskSplit::kHeldOut);
  std::map<std::string, std::set<std::string>> distinct;
  for (int i = 0; i < 20000; ++i) {
    const Problem p = held.next();
    const std::string c = content(p);
    ASSERT_FALSE(train.contains(c)) << p.prompt;
    distinct[p.task].insert(c);
  }
  for (const auto& [task, problems] : distinct) EXPECT_GE(problems.size(), 200u) << task;
  // What the header claims about short strings.
  std::array<int, 3> held_out{};
  for (const auto& c : distinct["reverse"])
    if (c.size() <= 4) ++held_out[c.size() - 2];
  EXPECT_EQ(held_out[1], 1);
  EXPECT_EQ(held_out[2], 14);
}

TEST(Tasks, SameSeedSameProblems) {
  TaskGenerator a(5, TaskSplit::kTrain), b(5, TaskSplit::kTrain), c(6, TaskSplit::kTrain);
  int equal = 0;
  for (int i = 0; i < 200; ++i) {
    const Problem p = a.next();
    ASSERT_EQ(p.line, b.next().line);
    equal += p.line == c.next().line;
  }
  EXPECT_LT(equal, 20);
}

TEST(Tasks, WritesTokenFilesAndProblems) {
  TempDir dir;
  const TaskMix mix = parse_task_mix("reverse=1,recall=2");
  const int64_t n =
      write_task_tokens(dir.file("t.h5"), TaskGenerator(3, TaskSplit::kTrain, mix), 3, 10000);
  const auto t = TokenFile::open(dir.file("t.h5"));
  EXPECT_GE(t->size(), 10000);
  EXPECT_EQ(t->documents() * 8, n);
  EXPECT_TRUE(t->verify().empty());
  std::vector<int32_t> ids(static_cast<size_t>(t->size()));
  t->read(0, ids);
  TaskGenerator again(3, TaskSplit::kTrain, mix);
  std::string text;
  for (int64_t i = 0; i < n; ++i) text += again.next().line;
  EXPECT_EQ(t->tokenizer()->decode(ids), text);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), kEndOfDocument), n / 8);
  write_task_tokens(dir.file("u.h5"), TaskGenerator(3, TaskSplit::kTrain, mix), 3, 10000);
  EXPECT_EQ(read_file(dir.file("t.h5")), read_file(dir.file("u.h5")));

  EXPECT_EQ(write_task_problems(dir.file("p.jsonl"), 4, TaskSplit::kHeldOut, mix, 250), 500);
  std::istringstream lines(read_file(dir.file("p.jsonl")));
  std::map<std::string, std::set<std::string>> prompts;
  for (std::string line; std::getline(lines, line);) {
    const auto j = nlohmann::json::parse(line);
    const auto prompt = j["prompt"].get<std::string>();
    EXPECT_EQ(j["answer"].get<std::string>(), solve(prompt));
    prompts[j["task"].get<std::string>()].insert(prompt);
  }
  EXPECT_EQ(prompts["reverse"].size(), 250u);
  EXPECT_EQ(prompts["recall"].size(), 250u);
  EXPECT_EQ(prompts.size(), 2u);
  // There are not that many additions.
  EXPECT_THROW(
      write_task_problems(dir.file("p.jsonl"), 4, TaskSplit::kHeldOut, parse_task_mix("add"), 3000),
      ConfigError);
}

TEST(Tasks, RefusesWrongMixes) {
  for (const char* bad : {"revers=1", "reverse=x", "reverse=-1", "reverse=1,,", "reverse="})
    EXPECT_THROW(parse_task_mix(bad), ConfigError) << bad;
  EXPECT_EQ(parse_task_mix("recall,add=0.5").recall, 1);
  EXPECT_EQ(parse_task_mix("recall,add=0.5").reverse, 0);
  EXPECT_THROW(TaskGenerator(1, TaskSplit::kTrain, parse_task_mix("add=0")), ConfigError);
  EXPECT_THROW(write_task_tokens("x.h5", TaskGenerator(1, TaskSplit::kTrain), 1, 0), ConfigError);
}

}  // namespace
}  // namespace rwkv
