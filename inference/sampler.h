#pragma once
/// From logits to the next token: penalties, filters and the draw, in the order of the reference
/// implementation (the rwkv package; spec formats a.6). See docs/generation.md.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/sample/draw.h"

namespace rwkv {

/// The defaults draw from the model's own distribution. The order in which they act:
///   1. repetition penalty, then presence and frequency penalties, then logit_bias, on the logits;
///      the logits of banned tokens become -infinity
///   2. softmax at temperature 1
///   3. top_p, top_k, min_p: each looks at the probabilities of step 2
///   4. p^(1/temperature) of what is left, normalised
///   5. the draw
/// Unlike in most servers the temperature acts after top_p: a high temperature flattens the
/// candidates but never adds one.
struct SamplingOptions {
  /// > 0; 0 takes the largest logit after step 1 (the lowest id among equals), filters ignored.
  double temperature = 1;
  /// (0, 1]. Keeps every token at least as probable as the one at which the sum over tokens of
  /// descending probability reaches top_p; equally probable tokens are all kept.
  double top_p = 1;
  /// Keeps the k most probable of those (the lower ids among equals); 0 keeps all.
  int64_t top_k = 0;
  /// [0, 1]. Keeps tokens of at least min_p times the probability of the most probable one.
  double min_p = 0;
  /// > 0. Logits of tokens seen in prompt or output are divided by it if positive and multiplied
  /// by it if negative (Keskar et al. 2019, CTRL). 1 is off.
  double repetition_penalty = 1;
  /// For every generated token: logit -= presence_penalty + occurrences * frequency_penalty.
  double presence_penalty = 0;
  double frequency_penalty = 0;
  /// (0, 1]. All occurrences are multiplied by it after each token, before the new one counts as
  /// 1. 1 forgets nothing, the reference uses 0.996.
  double penalty_decay = 1;
  /// Tokens that pay the presence penalty but whose occurrences stay 0, so that they may repeat:
  /// the reference exempts pieces of " \t0123456789" (number_tokens in inference/generate.h).
  std::vector<int32_t> uncounted_tokens;
  /// Added to the logits of these tokens; finite. Biases of one token add up.
  std::vector<std::pair<int32_t, float>> logit_bias;
  /// Never drawn. If a model leaves nothing else, next() throws NonFiniteError.
  std::vector<int32_t> banned_tokens;
  uint64_t seed = 0;

  /// Throws ConfigError naming the option, its value and the allowed range. Tokens outside of the
  /// vocabulary are ignored everywhere.
  void check() const;
};

/// One token that may be drawn, with its probability among those that may.
struct Candidate {
  int32_t token;
  double probability;
};

/// Steps 2 to 4 on logits that carry their penalties already, in ascending order of token; the
/// probabilities sum to 1. Logits of -infinity are never drawn, nor are tokens of less than 2^-44
/// times the largest probability. temperature 0 gives one candidate. Arithmetic and accuracy:
/// kernels/sample/draw.h.
/// Throws NonFiniteError if a logit is NaN or +infinity, or none is finite.
std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options);

/// A token with the logarithm of its probability.
struct TokenLogProb {
  int32_t token = 0;
  float log_prob = 0;
};

/// log softmax of the logits as the model gave them, without penalties, filters and temperature: of
/// `token`, and of the `top` most probable tokens, most probable first (the lower ids among
/// equals), without those of -infinity.
struct LogProbs {
  TokenLogProb chosen;
  std::vector<TokenLogProb> top;
};
/// Of a logit, given the largest one and sample::total_weight of all.
float log_prob(float logit, float largest, uint64_t total);
/// Throws NonFiniteError like candidates(); ConfigError for a token outside of the vocabulary.
LogProbs log_probs(std::span<const float> logits, int32_t token, int64_t top);

/// Memory for a draw from a large vocabulary, to be used again.
struct DrawScratch {
  std::vector<float> logits;  ///< with penalties
  sample::Weights weights;
};

/// The state of one sequence: what it has generated and how far it is. The draw at position n of
/// sequence s is a pure function of (seed, s, n), the logits and the tokens before, so neither the
/// other sequences of a batch nor the number of threads can change it, nor whether the CPU or a GPU
/// draws. Not thread-safe.
class TokenSampler {
 public:
  /// Throws what options.check() throws.
  explicit TokenSampler(SamplingOptions options, uint64_t sequence = 0);

  /// Marks tokens of the prompt as seen. Only the repetition penalty looks at them.
  void see(std::span<const int32_t> prompt);
  /// Draws the next token from logits (V), as the model gave them, and counts it.
  /// Throws NonFiniteError like candidates().
  int32_t next(std::span<const float> logits);
  int32_t next(std::span<const float> logits, DrawScratch& scratch);
  /// Counts a token that was chosen elsewhere as if next() had drawn it. Returns which of
  /// adjustments() it changed or added, if any.
  std::optional<size_t> count(int32_t token);

  /// What draws the next token elsewhere: options, position and random bits; and the penalties,
  /// biases and bans, one entry for a token. Ids may lie outside of the vocabulary.
  sample::DrawRow row() const;
  std::span<const sample::Adjustment> adjustments() const { return adjustments_; }

  int64_t position() const { return position_; }  ///< tokens counted so far
  const SamplingOptions& options() const { return options_; }

 private:
  sample::Adjustment& adjustment(int32_t token);

  SamplingOptions options_;
  uint64_t sequence_;
  int64_t position_ = 0;
  bool penalties_ = false;
  std::vector<sample::Adjustment> adjustments_;
  std::unordered_map<int32_t, size_t> index_;  ///< of a token in adjustments_
};

}  // namespace rwkv
