#include "inference/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"

namespace rwkv {
namespace {

/// The largest logit's first position. Every logit is looked at, so that no NaN slips through.
size_t checked_argmax(std::span<const float> logits) {
  RWKV_CHECK(!logits.empty(), ShapeError, "sampling from an empty vector of logits");
  size_t best = logits.size();
  for (size_t i = 0; i < logits.size(); ++i) {
    const float x = logits[i];
    RWKV_CHECK(!std::isnan(x) && x != std::numeric_limits<float>::infinity(), NonFiniteError,
               "sampling: the logit of token ", i, " is ", x,
               "; the model's weights or state are broken");
    if (x != -std::numeric_limits<float>::infinity() && (best == logits.size() || x > logits[best]))
      best = i;
  }
  RWKV_CHECK(best < logits.size(), NonFiniteError, "sampling: all ", logits.size(),
             " logits are -inf");
  return best;
}

/// More probable first, then lower ids: a total order.
bool before(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
}

/// Sorts the first `n` of `all` into place, given that the first `sorted` are there already.
void sort_prefix(std::vector<Candidate>& all, size_t sorted, size_t n) {
  const auto at = [&](size_t i) { return all.begin() + static_cast<std::ptrdiff_t>(i); };
  if (n < all.size()) std::nth_element(at(sorted), at(n), all.end(), before);
  std::sort(at(sorted), at(n), before);
}

/// Leaves the kept candidates in front. Vocabularies are large and what is kept is mostly small,
/// so the list is sorted in growing pieces instead of whole.
void filter(std::vector<Candidate>& all, const SamplingOptions& o) {
  constexpr size_t kFirstPiece = 64, kGrowth = 8;
  size_t keep = all.size();
  size_t sorted = 0;
  const auto grow = [&] {
    const size_t n = std::min(all.size(), sorted == 0 ? kFirstPiece : sorted * kGrowth);
    sort_prefix(all, sorted, n);
    sorted = n;
  };
  if (o.top_p < 1) {
    double sum = 0;
    size_t i = 0;
    for (; i < all.size(); ++i) {
      if (i == sorted) grow();
      sum += all[i].probability;
      if (sum >= o.top_p) break;
    }
    // Rounding may leave the total of all tokens just under top_p: then nothing is cut.
    if (i < all.size()) {
      const double cut = all[i].probability;
      for (keep = i + 1; keep < all.size(); ++keep) {
        if (keep == sorted) grow();
        if (all[keep].probability < cut) break;
      }
    }
  }
  if (o.top_k > 0 && static_cast<size_t>(o.top_k) < keep) {
    keep = static_cast<size_t>(o.top_k);
    if (keep > sorted) sort_prefix(all, sorted, keep);
  }
  all.resize(keep);
  if (o.min_p > 0) {
    const double largest = std::ranges::max(all, {}, &Candidate::probability).probability;
    std::erase_if(all, [&](const Candidate& c) { return c.probability < o.min_p * largest; });
  }
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
  const size_t best = checked_argmax(logits);
  if (options.temperature == 0) return {{static_cast<int32_t>(best), 1.0}};
  const double largest = logits[best];
  std::vector<Candidate> all;
  all.reserve(logits.size());
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double p = std::exp(static_cast<double>(logits[i]) - largest);
    if (p == 0) continue;
    all.push_back({static_cast<int32_t>(i), p});
    sum += p;
  }
  for (Candidate& c : all) c.probability /= sum;
  const size_t before_filter = all.size();
  filter(all, options);
  if (options.top_p < 1 || all.size() < before_filter)
    std::ranges::sort(all, {}, &Candidate::token);
  double total = 0;
  for (Candidate& c : all) {
    // p^(1/T) from the logits, not from rounded probabilities, and relative to the largest, so
    // that a small temperature neither overflows nor loses everything.
    if (options.temperature != 1) {
      const double log_p = static_cast<double>(logits[static_cast<size_t>(c.token)]) - largest;
      c.probability = std::exp(log_p / options.temperature);
    }
    total += c.probability;
  }
  for (Candidate& c : all) c.probability /= total;
  std::erase_if(all, [](const Candidate& c) { return c.probability == 0; });
  return all;
}

LogProbs log_probs(std::span<const float> logits, int32_t token, int64_t top) {
  const double largest = logits[checked_argmax(logits)];
  RWKV_CHECK(token >= 0 && static_cast<size_t>(token) < logits.size(), ConfigError,
             "log-probabilities: token ", token, " of ", logits.size());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - largest);
  const double log_sum = largest + std::log(sum);
  const auto entry = [&](int32_t t) {
    return TokenLogProb{
        t, static_cast<float>(static_cast<double>(logits[static_cast<size_t>(t)]) - log_sum)};
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
  for (size_t i = 0; i < n; ++i) out.top.push_back(entry(order[i]));
  return out;
}

TokenSampler::TokenSampler(SamplingOptions options, uint64_t sequence)
    : options_(std::move(options)), sequence_(sequence) {
  options_.check();
  std::ranges::sort(options_.uncounted_tokens);
}

void TokenSampler::see(std::span<const int32_t> prompt) {
  for (const int32_t token : prompt) seen_.try_emplace(token);
}

int32_t TokenSampler::next(std::span<const float> logits) {
  logits_.assign(logits.begin(), logits.end());
  for (const auto& [token, seen] : seen_) {
    if (token < 0 || static_cast<size_t>(token) >= logits_.size()) continue;
    double x = logits_[static_cast<size_t>(token)];
    x = x > 0 ? x / options_.repetition_penalty : x * options_.repetition_penalty;
    if (seen.generated)
      x -= options_.presence_penalty + seen.occurrences * options_.frequency_penalty;
    logits_[static_cast<size_t>(token)] = static_cast<float>(x);
  }
  const auto inside = [&](int32_t token) {
    return token >= 0 && static_cast<size_t>(token) < logits_.size();
  };
  for (const auto& [token, bias] : options_.logit_bias)
    if (inside(token)) logits_[static_cast<size_t>(token)] += bias;
  for (const int32_t token : options_.banned_tokens)
    if (inside(token))
      logits_[static_cast<size_t>(token)] = -std::numeric_limits<float>::infinity();
  const std::vector<Candidate> from = candidates(logits_, options_);
  int32_t token = from.back().token;
  if (from.size() > 1) {
    const Rng rng(options_.seed, hash_name("inference.sampler") + sequence_);
    double left = rng.uniform(static_cast<uint64_t>(position_));
    for (const Candidate& c : from) {
      left -= c.probability;
      if (left < 0) {
        token = c.token;
        break;
      }
    }
  }
  count(token);
  return token;
}

void TokenSampler::count(int32_t token) {
  if (options_.penalty_decay != 1)
    for (auto& [id, seen] : seen_) seen.occurrences *= options_.penalty_decay;
  Seen& seen = seen_[token];
  seen.generated = true;
  if (!std::ranges::binary_search(options_.uncounted_tokens, token)) seen.occurrences += 1;
  ++position_;
}

}  // namespace rwkv
