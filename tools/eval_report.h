#pragma once
/// What rwkv-eval prints, as text for people and as one JSON object.

#include <cstdint>
#include <span>
#include <string>

#include "inference/evaluate.h"

namespace rwkv {

struct Report {
  std::string text, json;
};

Report loss_report(const LossSum& sum, int64_t ctx);
Report lambada_report(const LambadaResult& result);
/// Accuracy per task and of all, and the first `errors` wrong outputs of each task.
Report tasks_report(std::span<const TaskProblem> problems, std::span<const TaskOutcome> outcomes,
                    int64_t errors);

/// Appends "[x,y,...]": the shortest decimals that give the same floats again, null for
/// NaN and infinity.
void append_json_row(std::string& out, std::span<const float> row);

}  // namespace rwkv
