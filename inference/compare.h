#pragma once
/// The same loss under several WKV variants: what a state of fewer bits costs.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "inference/evaluate.h"

namespace rwkv {

struct WkvCompareOptions {
  /// The others are compared with the first.
  std::vector<std::string> variants = {"serial", "fp16-plain", "fp16-dithered"};
  std::vector<int64_t> contexts = {512, 1024, 2048, 4096};
  int64_t batch_tokens = 16384;  ///< about so many tokens run together
  int64_t bins = 64;             ///< positions of the longest context are averaged in so many
};

struct WkvComparison {
  struct Row {
    int64_t context = 0, windows = 0;
    std::vector<double> loss;        ///< mean nats per token, by variant
    std::vector<double> difference;  ///< from variants[0]
    std::vector<double> error;       ///< standard error of the difference, from windows; 0 for one
    /// Windows whose loss is not finite (a binary16 state beyond its range), by variant. The loss
    /// of such a variant is NaN; difference and error are those of its other windows, NaN without
    /// any.
    std::vector<int64_t> broken;
  };
  std::vector<std::string> variants;  ///< full names
  /// Predictions: the same ones for every context that divides the longest.
  int64_t tokens = 0;
  std::vector<Row> rows;
  int64_t bin = 0;  ///< positions in an entry of by_position; the last may have fewer
  std::vector<std::vector<double>> by_position;  ///< mean difference, by variant, longest context
};

/// Losses of a stream of `count` tokens in whole windows of each context, each from a fresh state,
/// under each variant; as many tokens as whole windows of the longest context have. Everything but
/// the variant is equal, the cut into pieces included.
/// Throws ConfigError for an empty list, a context below 1 or a variant that does not fit, IoError
/// if the stream has no whole window of the longest context, NonFiniteError for such losses under
/// the first variant; under the others they are a result.
WkvComparison compare_wkv(const Model& model, const ParamStore& weights,
                          const EngineOptions& engine, int64_t count, const TokenReader& read,
                          const WkvCompareOptions& options, const ProgressSink& progress = {});

}  // namespace rwkv
