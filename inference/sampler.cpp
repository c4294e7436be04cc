#include "inference/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"

namespace rwkv {
namespace {

/// What the options say of a draw, without seed and history.
sample::DrawRow row_of(const SamplingOptions& o) {
  sample::DrawRow row;
  row.repetition = o.repetition_penalty;
  row.presence = o.presence_penalty;
  row.frequency = o.frequency_penalty;
  row.decay = o.penalty_decay;
  if (o.top_p < 1)
    row.top_p = std::max<uint64_t>(static_cast<uint64_t>(std::ldexp(o.top_p, 64)), 1);
  // A temperature beyond these leaves one token, or all alike.
  row.inverse_temperature =
      o.temperature == 0 ? 0.0f : static_cast<float>(std::clamp(1 / o.temperature, 1e-30, 1e30));
  row.farthest =
      o.min_p > 0 ? static_cast<float>(-std::log(o.min_p)) : std::numeric_limits<float>::infinity();
  row.top_k = static_cast<int32_t>(std::min<int64_t>(o.top_k, std::numeric_limits<int32_t>::max()));
  return row;
}

}  // namespace

void SamplingOptions::check() const {
  const auto need = [](bool ok, const char* name, auto value, const char* allowed) {
    RWKV_CHECK(ok, ConfigError, "sampling: ", name, " is ", value, ", expected ", allowed);
  };
  constexpr double kInf = std::numeric_limits<double>::infinity();
  need(temperature >= 0 && temperature < kInf, "temperature", temperature,
       "a number of at least 0");
  need(top_p > 0 && top_p <= 1, "top_p", top_p, "more than 0 and at most 1");
  need(top_k >= 0, "top_k", top_k, "at least 0 (0 keeps all tokens)");
  need(min_p >= 0 && min_p <= 1, "min_p", min_p, "0 to 1");
  need(repetition_penalty > 0 && repetition_penalty < kInf, "repetition_penalty",
       repetition_penalty, "more than 0 (1 is off)");
  need(std::isfinite(presence_penalty), "presence_penalty", presence_penalty, "a finite number");
  need(std::isfinite(frequency_penalty), "frequency_penalty", frequency_penalty, "a finite number");
  need(penalty_decay > 0 && penalty_decay <= 1, "penalty_decay", penalty_decay,
       "more than 0 and at most 1 (1 is off)");
  for (const auto& [token, bias] : logit_bias)
    need(std::isfinite(bias), "logit_bias", bias, "a finite number");
}

std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options) {
  if (options.temperature == 0) return {{static_cast<int32_t>(sample::check_logits(logits)), 1.0}};
  sample::Weights w;
  sample::weigh(logits, row_of(options), w);
  std::vector<Candidate> out;
  for (size_t i = 0; i < w.weights.size(); ++i) {
    if (w.weights[i] == 0) continue;
    out.push_back({w.tokens.empty() ? static_cast<int32_t>(i) : w.tokens[i],
                   static_cast<double>(w.weights[i]) / static_cast<double>(w.total)});
  }
  return out;
}

float log_prob(float logit, float largest, uint64_t total) {
  const double sum = std::ldexp(static_cast<double>(total), -sample::kWeightBits);
  return static_cast<float>(static_cast<double>(logit) - static_cast<double>(largest) -
                            std::log(sum));
}

LogProbs log_probs(std::span<const float> logits, int32_t token, int64_t top) {
  const float largest = logits[sample::check_logits(logits)];
  RWKV_CHECK(token >= 0 && static_cast<size_t>(token) < logits.size(), ConfigError,
             "log-probabilities: token ", token, " of ", logits.size());
  const uint64_t total = sample::total_weight(logits, largest);
  const auto entry = [&](int32_t t) {
    return TokenLogProb{t, log_prob(logits[static_cast<size_t>(t)], largest, total)};
  };
  LogProbs out{entry(token), {}};
  const auto n = std::min<size_t>(static_cast<size_t>(std::max<int64_t>(top, 0)), logits.size());
  if (n == 0) return out;
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n), order.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)];
                      const float y = logits[static_cast<size_t>(b)];
                      return x != y ? x > y : a < b;
                    });
  for (size_t i = 0; i < n && std::isfinite(logits[static_cast<size_t>(order[i])]); ++i)
    out.top.push_back(entry(order[i]));
  return out;
}

TokenSampler::TokenSampler(SamplingOptions options, uint64_t sequence)
    : options_(std::move(options)), sequence_(sequence) {
  options_.check();
  std::ranges::sort(options_.uncounted_tokens);
  penalties_ = options_.repetition_penalty != 1 || options_.presence_penalty != 0 ||
               options_.frequency_penalty != 0;
  for (const auto& [token, bias] : options_.logit_bias) adjustment(token).bias += bias;
  for (const int32_t token : options_.banned_tokens)
    adjustment(token).flags |= sample::Adjustment::kBanned;
}

sample::Adjustment& TokenSampler::adjustment(int32_t token) {
  const auto [at, fresh] = index_.try_emplace(token, adjustments_.size());
  if (fresh) adjustments_.push_back({.token = token});
  return adjustments_[at->second];
}

void TokenSampler::see(std::span<const int32_t> prompt) {
  if (options_.repetition_penalty == 1) return;
  for (const int32_t token : prompt) adjustment(token).flags |= sample::Adjustment::kSeen;
}

sample::DrawRow TokenSampler::row() const {
  sample::DrawRow row = row_of(options_);
  row.position = static_cast<int32_t>(position_);
  row.random = Rng(options_.seed, hash_name("inference.sampler") + sequence_)
                   .u64(static_cast<uint64_t>(position_));
  return row;
}

int32_t TokenSampler::next(std::span<const float> logits) {
  DrawScratch scratch;
  return next(logits, scratch);
}

int32_t TokenSampler::next(std::span<const float> logits, DrawScratch& scratch) {
  const sample::DrawRow draw = row();
  if (!adjustments_.empty()) {
    scratch.logits.assign(logits.begin(), logits.end());
    sample::adjust(scratch.logits, draw, adjustments_);
    logits = scratch.logits;
  }
  int32_t token = 0;
  if (options_.temperature == 0) {
    token = static_cast<int32_t>(sample::check_logits(logits));
  } else {
    sample::weigh(logits, draw, scratch.weights);
    token = sample::pick(scratch.weights, draw.random);
  }
  count(token);
  return token;
}

std::optional<size_t> TokenSampler::count(int32_t token) {
  ++position_;
  if (!penalties_) return std::nullopt;
  using sample::Adjustment;
  Adjustment& a = adjustment(token);
  const auto now = static_cast<int32_t>(position_);
  if (!std::ranges::binary_search(options_.uncounted_tokens, token))
    a.occurrences = a.occurrences * sample::power(options_.penalty_decay, now - a.last) + 1;
  a.flags |= Adjustment::kSeen | Adjustment::kGenerated;
  a.last = now;
  return static_cast<size_t>(&a - adjustments_.data());
}

}  // namespace rwkv
