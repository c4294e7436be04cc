#include "tools/eval_report.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "data/tokenizer/utf8.h"

namespace rwkv {
namespace {

using Json = nlohmann::ordered_json;

std::string fixed(double x, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, x);
  return text;
}

/// Never throws for texts that are not UTF-8.
std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

Report loss_report(const LossSum& sum, int64_t ctx) {
  const bool bytes = sum.bytes > 0;
  const Json json = {{"tokens", sum.tokens},
                     {"bytes", sum.bytes},
                     {"ctx", ctx},
                     {"loss", sum.mean()},
                     {"perplexity", sum.perplexity()},
                     {"bits_per_byte", bytes ? Json(sum.bits_per_byte()) : Json(nullptr)}};
  const std::string per_byte =
      bytes ? fixed(sum.bits_per_byte(), 4) + " bits per byte" : "bits per byte unknown";
  return {
      str("loss ", fixed(sum.mean(), 4), " nats per token, perplexity ", fixed(sum.perplexity(), 3),
          ", ", per_byte, "\n", sum.tokens, " tokens, ", sum.bytes, " bytes, windows of ", ctx),
      dump(json)};
}

Report lambada_report(const LambadaResult& r) {
  const Json json = {{"texts", r.texts},
                     {"correct", r.correct},
                     {"accuracy", r.accuracy()},
                     {"perplexity", r.perplexity()}};
  return {str("LAMBADA accuracy ", fixed(100 * r.accuracy(), 2), " % (", r.correct, " of ", r.texts,
              "), perplexity ", fixed(r.perplexity(), 3)),
          dump(json)};
}

Report tasks_report(std::span<const TaskProblem> problems, std::span<const TaskOutcome> outcomes,
                    int64_t errors) {
  Json json = {{"tasks", Json::array()}};
  std::string table = "accuracy  correct  problems  task";
  TaskScore all{.task = "all"};
  const auto row = [&](const TaskScore& s) {
    char text[64];
    std::snprintf(text, sizeof text, "\n%6.2f %%  %7lld  %8lld  ", 100 * s.accuracy(),
                  static_cast<long long>(s.correct), static_cast<long long>(s.problems));
    table += text + s.task;
  };
  for (const TaskScore& s : task_scores(problems, outcomes)) {
    json["tasks"].push_back({{"task", s.task},
                             {"problems", s.problems},
                             {"correct", s.correct},
                             {"accuracy", s.accuracy()}});
    row(s);
    all.problems += s.problems;
    all.correct += s.correct;
  }
  row(all);
  json["problems"] = all.problems;
  json["correct"] = all.correct;
  json["accuracy"] = all.accuracy();
  if (errors > 0) json["errors"] = Json::array();
  std::map<std::string, int64_t> shown;
  for (size_t i = 0; i < problems.size(); ++i) {
    if (outcomes[i].correct || ++shown[problems[i].task] > errors) continue;
    const Json error = {{"task", problems[i].task},
                        {"prompt", problems[i].prompt},
                        {"answer", problems[i].answer},
                        {"output", to_valid_utf8(outcomes[i].output)}};
    json["errors"].push_back(error);
    table += '\n';
    table += dump(error);
  }
  return {table, dump(json)};
}

void append_json_row(std::string& out, std::span<const float> row) {
  char separator = '[';
  for (const float x : row) {
    char text[32];
    out += separator;
    if (std::isfinite(x))
      out.append(text, std::to_chars(text, text + sizeof text, x).ptr);
    else
      out += "null";  // JSON has no NaN
    separator = ',';
  }
  out += ']';
}

}  // namespace rwkv
