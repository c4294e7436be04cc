// The sampler against a plain restatement of the reference's rules, on all small vocabularies, and
// its draws against the distribution that it states.

#include "inference/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"

namespace rwkv {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// Steps 2 to 4 as the reference's documentation words them: whole arrays, no short cuts.
std::vector<double> plain_probabilities(const std::vector<float>& logits,
                                        const SamplingOptions& o) {
  const size_t v = logits.size();
  std::vector<size_t> order(v);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> p(v, 0);
  if (o.temperature == 0) {
    p[order[0]] = 1;
    return p;
  }
  double sum = 0;
  for (size_t i = 0; i < v; ++i) sum += p[i] = std::exp(double{logits[i]} - logits[order[0]]);
  for (double& x : p) x /= sum;
  const std::vector<double> original = p;
  double cumulative = 0, cutoff = 0;
  for (const size_t i : order) {
    cumulative += original[i];
    if (cumulative >= o.top_p) {
      cutoff = original[i];
      break;
    }
  }
  for (size_t i = 0; i < v; ++i)
    if (o.top_p < 1 && original[i] < cutoff) p[i] = 0;
  if (o.top_k > 0)
    for (size_t rank = static_cast<size_t>(o.top_k); rank < v; ++rank) p[order[rank]] = 0;
  for (size_t i = 0; i < v; ++i)
    if (original[i] < o.min_p * original[order[0]]) p[i] = 0;
  sum = 0;
  for (double& x : p) sum += x = x == 0 ? 0 : std::pow(x, 1 / o.temperature);
  for (double& x : p) x /= sum;
  return p;
}

std::vector<double> dense(const std::vector<Candidate>& c, size_t v) {
  std::vector<double> p(v, 0);
  for (const Candidate& x : c) p[static_cast<size_t>(x.token)] = x.probability;
  return p;
}

void expect_same(const std::vector<float>& logits, const SamplingOptions& o) {
  const auto got = dense(candidates(logits, o), logits.size());
  const auto want = plain_probabilities(logits, o);
  for (size_t i = 0; i < logits.size(); ++i) {
    // Exponentials in f32, of a product that f32 rounds: half a place of 30 is 1e-6.
    ASSERT_LE(std::fabs(got[i] - want[i]), 2e-6 * want[i] + 1e-12)
        << "token " << i << ": " << got[i] << " vs " << want[i] << ", temperature " << o.temperature
        << " top_p " << o.top_p << " top_k " << o.top_k << " min_p " << o.min_p;
  }
}

/// Every vector of `v` logits out of a few values, with many ties, under every combination of
/// options.
TEST(Sampler, EqualsPlainReferenceOnAllSmallVocabularies) {
  const float values[] = {-2.0f, 0.0f, 0.5f, 3.0f};
  std::vector<SamplingOptions> options;
  for (const double temperature : {0.0, 0.3, 1.0, 2.0})
    for (const double top_p : {0.05, 0.3, 0.71, 0.95, 1.0})
      for (const int64_t top_k : {0, 1, 2, 3, 9})
        for (const double min_p : {0.0, 0.2, 1.0})
          options.push_back(
              {.temperature = temperature, .top_p = top_p, .top_k = top_k, .min_p = min_p});
  for (size_t v = 1; v <= 4; ++v) {
    const auto count = static_cast<size_t>(std::pow(4, v) + 0.5);
    for (size_t code = 0; code < count; ++code) {
      std::vector<float> logits(v);
      for (size_t i = 0, c = code; i < v; ++i, c /= 4) logits[i] = values[c % 4];
      for (const SamplingOptions& o : options) expect_same(logits, o);
    }
  }
}

/// Vocabularies beyond the pieces in which the filter sorts.
TEST(Sampler, EqualsPlainReferenceOnLargeVocabularies) {
  for (const size_t v : {63, 64, 65, 512, 513, 5000}) {
    const Rng rng(11, v);
    std::vector<float> wide(v), flat(v), tied(v);
    for (size_t i = 0; i < v; ++i) {
      wide[i] = static_cast<float>(4 * rng.normal(i));
      flat[i] = static_cast<float>(0.01 * rng.normal(i));
      tied[i] = static_cast<float>(rng.below(i, 3));
    }
    for (const auto& logits : {wide, flat, tied})
      for (const double top_p : {0.1, 0.5, 0.99, 0.999999})
        for (const int64_t top_k : {int64_t{0}, int64_t{1}, int64_t{64}, int64_t{100}})
          expect_same(logits, {.temperature = 0.8, .top_p = top_p, .top_k = top_k});
  }
}

TEST(Sampler, KeepsAllTiesAtTopP) {
  // 0.4, 0.2, 0.2, 0.2: the sum reaches 0.5 within the equal ones, so all of them stay.
  const std::vector<float> logits = {std::log(0.2f), std::log(0.4f), std::log(0.2f),
                                     std::log(0.2f)};
  EXPECT_EQ(candidates(logits, {.top_p = 0.5}).size(), 4u);
  EXPECT_EQ(candidates(logits, {.top_p = 0.39}).size(), 1u);
}

TEST(Sampler, TemperatureActsAfterTopP) {
  // With the temperature first, 100 would make both candidates about equal and keep them.
  const std::vector<float> logits = {2.0f, 0.0f};
  const auto kept = candidates(logits, {.temperature = 100, .top_p = 0.8});
  ASSERT_EQ(kept.size(), 1u);
  EXPECT_EQ(kept[0].token, 0);
}

TEST(Sampler, ExtremeTemperaturesStayFinite) {
  const std::vector<float> logits = {1000.0f, 999.0f, -1000.0f};
  const auto cold = candidates(logits, {.temperature = 1e-6});
  ASSERT_EQ(cold.size(), 1u);
  EXPECT_EQ(cold[0].token, 0);
  EXPECT_EQ(cold[0].probability, 1.0);
  const auto hot = candidates(logits, {.temperature = 1e6, .top_k = 2});
  ASSERT_EQ(hot.size(), 2u);
  EXPECT_LE(std::fabs(hot[0].probability - 0.5), 1e-6);
}

TEST(Sampler, RefusesLogitsThatAreNotNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    const SamplingOptions o{.temperature = temperature};
    for (size_t at = 0; at < 3; ++at) {
      std::vector<float> logits = {1, 2, 3};
      logits[at] = nan;
      EXPECT_THROW(candidates(logits, o), NonFiniteError) << at;
      EXPECT_THROW(TokenSampler(o).next(logits), NonFiniteError) << at;
      logits[at] = kInf;
      EXPECT_THROW(candidates(logits, o), NonFiniteError) << at;
    }
    EXPECT_THROW(candidates(std::vector<float>{-kInf, -kInf}, o), NonFiniteError);
    EXPECT_THROW(candidates({}, o), ShapeError);
  }
}

TEST(Sampler, NeverDrawsMinusInfinity) {
  const std::vector<float> logits = {-kInf, 0.0f, -kInf, 1.0f};
  for (const double temperature : {0.0, 0.5, 1.0, 50.0}) {
    TokenSampler s({.temperature = temperature, .seed = 3});
    for (int i = 0; i < 200; ++i) {
      const int32_t token = s.next(logits);
      EXPECT_TRUE(token == 1 || token == 3) << token;
    }
  }
}

/// Pearson's statistic over 20,000 draws; with 7 degrees of freedom 24.3 is exceeded by chance once
/// in a thousand seeds, and the seed is fixed.
TEST(Sampler, DrawsFollowTheDistribution) {
  const std::vector<float> logits = {0.1f, 1.7f, -0.4f, 0.0f, 2.2f, -1.0f, 0.9f, 0.3f};
  for (const SamplingOptions& base : {SamplingOptions{}, SamplingOptions{.temperature = 0.7},
                                      SamplingOptions{.temperature = 2, .top_p = 0.9}}) {
    SamplingOptions o = base;
    o.seed = 20261122;
    const auto p = plain_probabilities(logits, o);
    TokenSampler s(o);
    constexpr int kDraws = 20000;
    std::vector<int> count(logits.size(), 0);
    for (int i = 0; i < kDraws; ++i) ++count[static_cast<size_t>(s.next(logits))];
    double chi2 = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      if (p[i] == 0) {
        EXPECT_EQ(count[i], 0);
        continue;
      }
      const double expected = kDraws * p[i];
      chi2 += (count[i] - expected) * (count[i] - expected) / expected;
    }
    EXPECT_LE(chi2, 24.3);
  }
}

TEST(Sampler, SeedSequenceAndPositionDecide) {
  const std::vector<float> logits(1000, 0.0f);
  const auto draw = [&](uint64_t seed, uint64_t sequence) {
    TokenSampler s({.seed = seed}, sequence);
    std::vector<int32_t> out;
    for (int i = 0; i < 50; ++i) out.push_back(s.next(logits));
    return out;
  };
  EXPECT_EQ(draw(1, 0), draw(1, 0));
  std::set<std::vector<int32_t>> all;
  for (uint64_t seed = 0; seed < 8; ++seed)
    for (uint64_t sequence = 0; sequence < 8; ++sequence) all.insert(draw(seed, sequence));
  EXPECT_EQ(all.size(), 64u);
  // A draw depends on its position, not on how the earlier tokens came about.
  TokenSampler fed({.seed = 1});
  for (int i = 0; i < 49; ++i) fed.count(7);
  EXPECT_EQ(fed.next(logits), draw(1, 0).back());
}

TEST(Sampler, PenaltiesAreTheReferences) {
  // Greedy choices make the penalised logits visible: a token stops being chosen at the moment its
  // logit falls below a rival's.
  SamplingOptions o{.temperature = 0, .presence_penalty = 0.5, .frequency_penalty = 0.2};
  TokenSampler s(o);
  // 2.0 - 0.5 - n 0.2 < 1.0 from n = 3 on.
  std::vector<int32_t> out;
  for (int i = 0; i < 4; ++i) out.push_back(s.next(std::vector<float>{2.0f, 1.0f}));
  EXPECT_EQ(out, (std::vector<int32_t>{0, 0, 0, 1}));

  // With decay d the occurrences of a token drawn n times in a row are (1 - d^n) / (1 - d), at
  // most 1 / (1 - d) = 2 here: 2.0 - 0.5 - 2 x 0.2 never falls below 1.0.
  o.penalty_decay = 0.5;
  TokenSampler decaying(o);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(decaying.next(std::vector<float>{2.0f, 1.0f}), 0);

  // An uncounted token pays presence only.
  o.penalty_decay = 1;
  o.uncounted_tokens = {5, 0};
  TokenSampler uncounted(o);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(uncounted.next(std::vector<float>{2.0f, 1.0f}), 0);
  EXPECT_EQ(uncounted.next(std::vector<float>{2.0f, 1.75f}), 1);
}

TEST(Sampler, PenaltyArithmetic) {
  // Against the formula, token by token, over a random history.
  const SamplingOptions o{.temperature = 1,
                          .repetition_penalty = 1.3,
                          .presence_penalty = 0.4,
                          .frequency_penalty = 0.15,
                          .penalty_decay = 0.9,
                          .uncounted_tokens = {2},
                          .seed = 5};
  const std::vector<int32_t> prompt = {3, 3, 4};
  const std::vector<float> logits = {0.5f, -0.5f, 1.0f, -1.0f, 0.2f, 0.0f};
  TokenSampler s(o, 9);
  s.see(prompt);
  std::map<int32_t, double> occurrence;
  for (int step = 0; step < 100; ++step) {
    std::vector<float> x = logits;
    for (int32_t t = 0; t < 6; ++t) {
      const bool generated = occurrence.contains(t);
      if (generated || t == 3 || t == 4) {
        double y = x[static_cast<size_t>(t)];
        y = y > 0 ? y / 1.3 : y * 1.3;
        if (generated) y -= 0.4 + occurrence[t] * 0.15;
        x[static_cast<size_t>(t)] = static_cast<float>(y);
      }
    }
    const auto p = plain_probabilities(x, o);
    double u = Rng(5, hash_name("inference.sampler") + 9).uniform(static_cast<uint64_t>(step));
    int32_t want = 0;
    while (want < 5 && (u -= p[static_cast<size_t>(want)]) >= 0) ++want;
    const int32_t got = s.next(logits);
    ASSERT_EQ(got, want) << "step " << step;
    for (auto& [t, n] : occurrence) n *= 0.9;
    occurrence[got] += got == 2 ? 0 : 1;
  }
  EXPECT_EQ(s.position(), 100);
}

TEST(Sampler, BiasesAndBansActAfterPenalties) {
  const std::vector<float> logits = {1, 2, 3, 4};
  // Greedy: 3 without anything, 0 with its bias, 2 where 3 is banned.
  EXPECT_EQ(TokenSampler({.temperature = 0}).next(logits), 3);
  EXPECT_EQ(TokenSampler({.temperature = 0, .logit_bias = {{0, 3.5f}}}).next(logits), 0);
  EXPECT_EQ(TokenSampler({.temperature = 0, .logit_bias = {{0, 1.5f}, {0, 2.0f}}}).next(logits), 0);
  EXPECT_EQ(TokenSampler({.temperature = 0, .banned_tokens = {3}}).next(logits), 2);
  // A ban holds against any bias; a bias is not scaled by the repetition penalty.
  EXPECT_EQ(TokenSampler({.temperature = 0, .logit_bias = {{3, 99.0f}}, .banned_tokens = {3}})
                .next(logits),
            2);
  TokenSampler seen({.temperature = 0, .repetition_penalty = 4, .logit_bias = {{3, 2.5f}}});
  seen.see(std::vector<int32_t>{3});  // 4 / 4 + 2.5
  EXPECT_EQ(seen.next(logits), 3);
  TokenSampler less({.temperature = 0, .repetition_penalty = 4, .logit_bias = {{3, 1.5f}}});
  less.see(std::vector<int32_t>{3});
  EXPECT_EQ(less.next(logits), 2);
  // Ids that the model does not have are nobody's.
  EXPECT_EQ(
      TokenSampler({.temperature = 0, .logit_bias = {{-1, 9}, {4, 9}}, .banned_tokens = {-1, 4}})
          .next(logits),
      3);
  EXPECT_THROW(TokenSampler({.temperature = 0, .banned_tokens = {0, 1, 2, 3}}).next(logits),
               NonFiniteError);
  EXPECT_THROW(TokenSampler({.logit_bias = {{0, kInf}}}), ConfigError);
  // The draw follows the shifted distribution: equal logits, one of them up by log 3.
  const std::vector<float> flat = {0, 0, 0};
  int hits = 0;
  TokenSampler sampler({.logit_bias = {{1, std::log(3.0f)}}, .banned_tokens = {2}, .seed = 5});
  for (int i = 0; i < 4000; ++i) {
    const int32_t token = sampler.next(flat);
    EXPECT_NE(token, 2);
    hits += token == 1;
  }
  EXPECT_NEAR(hits, 3000, 150);
}

TEST(Sampler, LogProbabilitiesAreTheModels) {
  const std::vector<float> logits = {1, 3, -kInf, 3, 0};
  const double sum = std::log(std::exp(1.0) + 2 * std::exp(3.0) + 1);
  const LogProbs p = log_probs(logits, 4, 3);
  EXPECT_EQ(p.chosen.token, 4);
  EXPECT_NEAR(p.chosen.log_prob, -sum, 1e-6);
  ASSERT_EQ(p.top.size(), 3U);
  EXPECT_EQ(p.top[0].token, 1);
  EXPECT_EQ(p.top[1].token, 3);
  EXPECT_EQ(p.top[2].token, 0);
  EXPECT_NEAR(p.top[0].log_prob, 3 - sum, 1e-6);
  EXPECT_NEAR(p.top[2].log_prob, 1 - sum, 1e-6);
  EXPECT_TRUE(log_probs(logits, 0, 0).top.empty());
  EXPECT_EQ(log_probs(logits, 0, 99).top.size(), 4U);  // not the one of -infinity
  EXPECT_THROW(log_probs(logits, 5, 0), ConfigError);
  EXPECT_THROW(log_probs(std::vector<float>{0, NAN}, 0, 0), NonFiniteError);
}

TEST(Sampler, GreedyTakesTheLowestIdAmongEquals) {
  EXPECT_EQ(TokenSampler({.temperature = 0}).next(std::vector<float>{1, 4, 4, 2}), 1);
}

TEST(Sampler, SeenTokensOutsideOfTheLogitsAreIgnored) {
  TokenSampler s({.temperature = 0, .repetition_penalty = 2});
  s.see(std::vector<int32_t>{70000, -1});
  EXPECT_EQ(s.next(std::vector<float>{1, 4}), 1);
}

TEST(Sampler, BadOptionsAreNamed) {
  const auto message = [](const SamplingOptions& o) -> std::string {
    try {
      o.check();
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(message({}), "");
  const std::vector<std::pair<SamplingOptions, const char*>> bad = {
      {{.temperature = -1}, "temperature"},
      {{.temperature = nan}, "temperature"},
      {{.top_p = 0}, "top_p"},
      {{.top_p = 1.1}, "top_p"},
      {{.top_p = nan}, "top_p"},
      {{.top_k = -1}, "top_k"},
      {{.min_p = -0.1}, "min_p"},
      {{.min_p = 2}, "min_p"},
      {{.repetition_penalty = 0}, "repetition_penalty"},
      {{.presence_penalty = nan}, "presence_penalty"},
      {{.frequency_penalty = nan}, "frequency_penalty"},
      {{.penalty_decay = 0}, "penalty_decay"},
      {{.penalty_decay = 1.5}, "penalty_decay"},
  };
  for (const auto& [o, name] : bad) {
    EXPECT_NE(message(o).find(name), std::string::npos) << name << ": " << message(o);
    EXPECT_THROW(TokenSampler{o}, ConfigError) << name;
  }
}

}  // namespace
}  // namespace rwkv
