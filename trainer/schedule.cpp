#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/core/error.h"

namespace rwkv {

ScheduleKind parse_schedule_kind(std::string_view name) {
  if (name == "cosine") return ScheduleKind::kCosine;
  if (name == "linear") return ScheduleKind::kLinear;
  if (name == "wsd") return ScheduleKind::kWsd;
  if (name == "constant") return ScheduleKind::kConstant;
  if (name == "exponential") return ScheduleKind::kExponential;
  throw ConfigError(str("learning-rate schedule '", name,
                        "' is unknown; there are cosine, linear, wsd, constant, exponential"));
}

int64_t Schedule::total_steps() const {
  return (exit_tokens + tokens_per_step - 1) / tokens_per_step;
}

double Schedule::at(int64_t n) const {
  const auto steps = static_cast<double>(n);
  const double tok = steps * static_cast<double>(tokens_per_step);
  const double tok_w = static_cast<double>(warmup) * static_cast<double>(tokens_per_step);
  const double span = static_cast<double>(exit_tokens) - tok_w;
  // A warm-up as long as the run leaves nothing to decay over.
  const double p = span > 0 ? std::clamp((tok - tok_w) / span, 0.0, 1.0) : 0.0;
  double rate = lr;
  switch (kind) {
    case ScheduleKind::kCosine: {
      const double f = lr_final / lr;
      rate = lr * ((0.5 + f / 2) + (0.5 - f / 2) * std::cos(std::numbers::pi * p));
      break;
    }
    case ScheduleKind::kLinear:
      rate = lr + (lr_final - lr) * p;
      break;
    case ScheduleKind::kWsd: {
      const double start = 1 - decay_part;
      const double q = decay_part > 0 ? std::max(0.0, (p - start) / decay_part) : 0.0;
      rate = lr + (lr_final - lr) * q;
      break;
    }
    case ScheduleKind::kConstant:
      break;
    case ScheduleKind::kExponential: {
      const double length = static_cast<double>(total_steps() - warmup);
      const double q =
          length > 0 ? std::clamp((static_cast<double>(n - hold - warmup) + 1) / length, 0., 1.)
                     : 0.0;
      rate = lr > 0 && lr_final > 0 ? lr * std::pow(lr_final / lr, q) : lr + (lr_final - lr) * q;
      break;
    }
  }
  if (n < warmup) rate *= warmup_start + (1 - warmup_start) * steps / static_cast<double>(warmup);
  return rate;
}

}  // namespace rwkv
