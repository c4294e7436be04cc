#pragma once
/// Learning rate as a function of the number of optimiser steps that were done before.

#include <cstdint>
#include <string>
#include <string_view>

namespace rwkv {

enum class ScheduleKind : uint8_t { kCosine, kLinear, kWsd, kConstant, kExponential };

/// Throws ConfigError listing the names.
ScheduleKind parse_schedule_kind(std::string_view name);

/// n = optimiser steps done by the run so far (0 for the first; a resumed run counts on), so that
/// resuming changes nothing. With `tok = n tokens_per_step` and `tok_w = warmup tokens_per_step`:
///   p = clamp((tok - tok_w) / (exit_tokens - tok_w), 0, 1)
///   cosine    lr ((1 + f) / 2 + (1 - f) / 2 cos(pi p)),   f = lr_final / lr
///   linear    lr + (lr_final - lr) p
///   wsd       lr until p = 1 - decay_part, then linearly to lr_final
///   constant  lr
///   exponential (RWKV-4)  lr (lr_final / lr)^q, linear in q if one of both is 0, with
///             q = clamp((n - hold - warmup + 1) / (total_steps - warmup), 0, 1)
/// and during warm-up (n < warmup) all of it times  start + (1 - start) n / warmup.
/// source: spec rwkv7 6.2, rwkv4 8; WSD: Hu et al. 2024 (MiniCPM), section 4.
struct Schedule {
  ScheduleKind kind = ScheduleKind::kCosine;
  double lr = 6e-4, lr_final = 6e-5;
  int64_t warmup = 0;          ///< steps
  double warmup_start = 0.01;  ///< 0.01 for RWKV-7, 0.2 for RWKV-4
  double decay_part = 0.2;
  int64_t hold = 0;
  int64_t tokens_per_step = 1, exit_tokens = 1;

  int64_t total_steps() const;  ///< the first n at which p reaches 1
  double at(int64_t n) const;
};

}  // namespace rwkv
