#include "inference/evaluate.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "data/io/json_depth.h"

namespace rwkv {
namespace {

/// -log p(target) from one row of logits.
double token_nats(std::span<const float> logits, int32_t target) {
  const double largest = std::ranges::max(logits);
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - largest);
  const double nats = largest + std::log(sum) - logits[static_cast<size_t>(target)];
  RWKV_CHECK(std::isfinite(nats), NonFiniteError,
             "evaluating: the logits are not finite; the model's weights are broken");
  return nats;
}

/// The lowest id among the largest.
int32_t argmax(std::span<const float> logits) {
  size_t best = 0;
  bool finite = true;
  for (size_t i = 0; i < logits.size(); ++i) {
    finite = finite && std::isfinite(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  RWKV_CHECK(finite, NonFiniteError,
             "evaluating: the logits are not finite; the model's weights are broken");
  return static_cast<int32_t>(best);
}

std::span<const float> row(const TensorView& logits, size_t b) {
  const auto n = static_cast<size_t>(logits.last());
  return {logits.f32() + b * n, n};
}

/// Calls run(indices) for groups of at most `batch` prompts of equal length, short ones first.
/// The same shapes come one after the other, so that few plans are made.
void for_equal_lengths(std::span<const std::vector<int32_t>> prompts, int64_t batch,
                       const ProgressSink& progress,
                       const std::function<void(std::span<const size_t>)>& run) {
  RWKV_CHECK(batch >= 1, ConfigError, "evaluating: batch is ", batch, ", expected at least 1");
  std::vector<size_t> order(prompts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return prompts[i].size(); });
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin + 1;
    while (end < order.size() && end - begin < static_cast<size_t>(batch) &&
           prompts[order[end]].size() == prompts[order[begin]].size())
      ++end;
    run({order.data() + begin, end - begin});
    begin = end;
    if (progress) progress(static_cast<int64_t>(end), static_cast<int64_t>(order.size()));
  }
}

std::vector<int32_t> join(std::span<const std::vector<int32_t>> prompts,
                          std::span<const size_t> group) {
  std::vector<int32_t> ids;
  for (const size_t i : group) ids.insert(ids.end(), prompts[i].begin(), prompts[i].end());
  return ids;
}

/// Calls use(object, where) for every line that is not blank.
void read_jsonl(const std::string& path,
                const std::function<void(const nlohmann::json&, const std::string&)>& use) {
  std::ifstream in(path, std::ios::binary);
  RWKV_CHECK(in.good(), IoError, "opening ", path, ": no such file, or not readable");
  std::string line;
  for (int64_t n = 1; std::getline(in, line); ++n) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = str(path, ", line ", n);
    RWKV_CHECK(!json_deeper_than(line), IoError, "reading ", where, ": nested too deep");
    const auto json = nlohmann::json::parse(line, nullptr, false);
    RWKV_CHECK(json.is_object(), IoError, "reading ", where, ": not a JSON object");
    use(json, where);
  }
  RWKV_CHECK(!in.bad(), IoError, "reading ", path, ": read error");
}

std::string text_member(const nlohmann::json& json, const char* name, const std::string& where) {
  const auto it = json.find(name);
  RWKV_CHECK(it != json.end() && it->is_string(), IoError, "reading ", where,
             ": expected a string called \"", name, "\"");
  return it->get<std::string>();
}

}  // namespace

double LossSum::perplexity() const {
  return std::exp(mean());
}

double LossSum::bits_per_byte() const {
  if (bytes == 0) return std::numeric_limits<double>::quiet_NaN();
  return nats / std::log(2.0) / static_cast<double>(bytes);
}

LossSum evaluate_loss(Engine& engine, int64_t count, const TokenReader& read, int64_t ctx,
                      const Tokenizer* tokenizer, const ProgressSink& progress, int64_t batch) {
  RWKV_CHECK(batch >= 1, ConfigError, "evaluating the loss: batch is ", batch,
             ", expected at least 1");
  RWKV_CHECK(ctx >= 1, ConfigError, "evaluating the loss: ctx is ", ctx, ", expected at least 1");
  RWKV_CHECK(count >= 2, IoError, "evaluating the loss: ", count,
             " tokens, expected at least 2 (one to start from, one to predict)");
  LossSum sum;
  std::vector<int32_t> ids;
  std::vector<float> loss;
  std::optional<RnnState> state;
  int64_t state_windows = 0, begin = 0;
  while (begin + 1 < count) {
    const int64_t left = count - 1 - begin;
    // Whole windows, which lie one after the other as a batch does, or the last, shorter one.
    const int64_t windows = std::clamp<int64_t>(left / ctx, 1, batch);
    const int64_t targets = std::min(windows * ctx, left);
    const auto n = static_cast<size_t>(targets);
    ids.resize(n + 1);
    loss.resize(n);
    read(begin, ids);
    const std::span<const int32_t> stretch(ids);
    if (windows == state_windows)
      state->reset();
    else
      state.emplace(engine.new_state(windows));
    state_windows = windows;
    engine.token_loss(*state, stretch.first(n), stretch.last(n), loss);
    for (size_t i = 0; i < n; ++i) {
      sum.nats += loss[i];
      RWKV_CHECK(std::isfinite(sum.nats), NonFiniteError,
                 "evaluating the loss: it is not finite in the window at token ",
                 begin + static_cast<int64_t>(i) / ctx * ctx);
    }
    sum.tokens += targets;
    if (tokenizer != nullptr)
      for (const int32_t id : stretch.last(n)) sum.bytes += std::ssize(tokenizer->token_bytes(id));
    if (progress) progress(sum.tokens, count - 1);
    begin += targets;
  }
  return sum;
}

double LambadaResult::perplexity() const {
  return std::exp(nats / static_cast<double>(texts));
}

LambadaResult evaluate_lambada(Engine& engine, const Tokenizer& tokenizer,
                               std::span<const std::string> texts, int64_t batch,
                               const ProgressSink& progress) {
  std::vector<std::vector<int32_t>> prompts, targets;
  for (const std::string& text : texts) {
    const size_t space = text.rfind(' ');
    RWKV_CHECK(space != std::string::npos && space + 1 < text.size(), IoError, "LAMBADA text ",
               prompts.size() + 1, ": '", text.substr(0, 40), "' has no last word after a space");
    std::vector<int32_t> prompt{kEndOfDocument};
    tokenizer.encode_to(std::string_view(text).substr(0, space), prompt);
    prompts.push_back(std::move(prompt));
    targets.push_back(tokenizer.encode(std::string_view(text).substr(space)));
  }
  LambadaResult result{.texts = std::ssize(texts)};
  for_equal_lengths(prompts, batch, progress, [&](std::span<const size_t> group) {
    RnnState state = engine.new_state(std::ssize(group));
    TensorView logits = engine.prefill(state, join(prompts, group));
    std::vector<bool> correct(group.size(), true);
    std::vector<int32_t> next(group.size());
    size_t longest = 0;
    for (const size_t i : group) longest = std::max(longest, targets[i].size());
    for (size_t t = 0; t < longest; ++t) {
      for (size_t b = 0; b < group.size(); ++b) {
        const std::vector<int32_t>& target = targets[group[b]];
        // Sequences that are through are fed end-of-document ids; nobody looks at their logits.
        next[b] = t < target.size() ? target[t] : kEndOfDocument;
        if (t >= target.size()) continue;
        result.nats += token_nats(row(logits, b), target[t]);
        if (argmax(row(logits, b)) != target[t]) correct[b] = false;
      }
      if (t + 1 < longest) logits = engine.decode(state, next);
    }
    result.correct += std::ranges::count(correct, true);
  });
  return result;
}

std::vector<std::string> read_lambada(const std::string& path) {
  std::vector<std::string> texts;
  read_jsonl(path, [&](const nlohmann::json& json, const std::string& where) {
    texts.push_back(text_member(json, "text", where));
  });
  RWKV_CHECK(!texts.empty(), IoError, "reading ", path, ": no texts in it");
  return texts;
}

std::vector<TaskOutcome> evaluate_tasks(Engine& engine, const Tokenizer& tokenizer,
                                        std::span<const TaskProblem> problems, int64_t batch,
                                        const ProgressSink& progress) {
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::string> answers;
  for (const TaskProblem& p : problems) {
    std::vector<int32_t> ids{kEndOfDocument};
    tokenizer.encode_to(p.prompt, ids);
    prompts.push_back(std::move(ids));
    answers.push_back(p.answer.ends_with('\n') ? p.answer.substr(0, p.answer.size() - 1)
                                               : p.answer);
  }
  std::vector<TaskOutcome> outcomes(problems.size());

  // Feeds one drawn token to a problem; true once its outcome is certain.
  const auto decided = [&](size_t problem, int32_t id) {
    TaskOutcome& o = outcomes[problem];
    const std::string& answer = answers[problem];
    const std::string_view bytes = tokenizer.token_bytes(id);
    if (bytes.empty()) {  // end of document, or an id without text, which is never right
      o.correct = id == kEndOfDocument && o.output == answer;
      return true;
    }
    for (const char c : bytes) {
      const size_t n = o.output.size();
      o.output += c;
      if (n < answer.size() && c == answer[n]) continue;
      o.correct = n == answer.size() && c == '\n';
      return true;
    }
    return false;
  };

  for_equal_lengths(prompts, batch, progress, [&](std::span<const size_t> group) {
    RnnState state = engine.new_state(std::ssize(group));
    TensorView logits = engine.prefill(state, join(prompts, group));
    std::vector<bool> done(group.size(), false);
    std::vector<int32_t> next(group.size(), kEndOfDocument);
    for (;;) {
      for (size_t b = 0; b < group.size(); ++b) {
        if (done[b]) continue;
        next[b] = argmax(row(logits, b));
        done[b] = decided(group[b], next[b]);
      }
      if (std::ranges::find(done, false) == done.end()) break;
      logits = engine.decode(state, next);
    }
  });
  return outcomes;
}

std::vector<TaskProblem> read_tasks(const std::string& path) {
  std::vector<TaskProblem> problems;
  read_jsonl(path, [&](const nlohmann::json& json, const std::string& where) {
    problems.push_back({.task = text_member(json, "task", where),
                        .prompt = text_member(json, "prompt", where),
                        .answer = text_member(json, "answer", where)});
  });
  RWKV_CHECK(!problems.empty(), IoError, "reading ", path, ": no problems in it");
  return problems;
}

std::vector<TaskScore> task_scores(std::span<const TaskProblem> problems,
                                   std::span<const TaskOutcome> outcomes) {
  RWKV_ASSERT(problems.size() == outcomes.size());
  std::vector<TaskScore> scores;
  for (size_t i = 0; i < problems.size(); ++i) {
    auto it = std::ranges::find(scores, problems[i].task, &TaskScore::task);
    if (it == scores.end()) it = scores.insert(it, TaskScore{.task = problems[i].task});
    ++it->problems;
    it->correct += outcomes[i].correct ? 1 : 0;
  }
  return scores;
}

}  // namespace rwkv
