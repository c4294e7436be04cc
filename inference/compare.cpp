#include "inference/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace rwkv {
namespace {

/// Losses of the first whole windows of `ctx` that fit in `tokens` predictions.
std::vector<float> window_losses(Engine& engine, int64_t tokens, const TokenReader& read,
                                 int64_t ctx, int64_t batch_tokens,
                                 const std::function<void(int64_t)>& done) {
  const int64_t windows = tokens / ctx, most = std::max<int64_t>(1, batch_tokens / ctx);
  std::vector<float> losses(static_cast<size_t>(windows * ctx));
  std::vector<int32_t> ids;
  for (int64_t first = 0; first < windows; first += most) {
    const int64_t batch = std::min(most, windows - first), begin = first * ctx;
    const auto n = static_cast<size_t>(batch * ctx);
    ids.resize(n + 1);
    read(begin, ids);
    RnnState state = engine.new_state(batch);
    const std::span<const int32_t> all(ids);
    engine.token_loss(state, all.first(n), all.last(n),
                      std::span(losses).subspan(static_cast<size_t>(begin), n));
    done(batch * ctx);
  }
  return losses;
}

double mean(std::span<const float> x) {
  double sum = 0;
  for (const float e : x) sum += static_cast<double>(e);
  return sum / static_cast<double>(x.size());
}

/// Mean of b - a in each window where it is finite.
std::vector<double> window_differences(std::span<const float> a, std::span<const float> b,
                                       int64_t ctx) {
  std::vector<double> d;
  for (size_t i = 0; i < a.size(); i += static_cast<size_t>(ctx)) {
    const auto n = static_cast<size_t>(ctx);
    const double difference = mean(b.subspan(i, n)) - mean(a.subspan(i, n));
    if (std::isfinite(difference)) d.push_back(difference);
  }
  return d;
}

int64_t broken_windows(const std::vector<float>& losses, int64_t ctx) {
  int64_t broken = 0;
  for (size_t i = 0; i < losses.size(); i += static_cast<size_t>(ctx))
    broken += !std::isfinite(mean(std::span(losses).subspan(i, static_cast<size_t>(ctx))));
  return broken;
}

double average_of(const std::vector<double>& x) {
  double sum = 0;
  for (const double e : x) sum += e;
  return sum / static_cast<double>(x.size());  // NaN without any
}

double standard_error(const std::vector<double>& x) {
  if (x.empty()) return std::numeric_limits<double>::quiet_NaN();
  if (x.size() < 2) return 0;
  double squares = 0;
  const double average = average_of(x);
  for (const double e : x) squares += (e - average) * (e - average);
  return std::sqrt(squares / static_cast<double>(x.size() * (x.size() - 1)));
}

std::vector<double> position_differences(std::span<const float> a, std::span<const float> b,
                                         int64_t ctx, int64_t bin) {
  std::vector<double> sum(static_cast<size_t>((ctx + bin - 1) / bin)), count(sum.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const size_t at = i % static_cast<size_t>(ctx) / static_cast<size_t>(bin);
    sum[at] += static_cast<double>(b[i]) - static_cast<double>(a[i]);
    count[at] += 1;
  }
  for (size_t i = 0; i < sum.size(); ++i) sum[i] /= count[i];
  return sum;
}

}  // namespace

WkvComparison compare_wkv(const Model& model, const ParamStore& weights,
                          const EngineOptions& engine_options, int64_t count,
                          const TokenReader& read, const WkvCompareOptions& options,
                          const ProgressSink& progress) {
  RWKV_CHECK(!options.variants.empty() && !options.contexts.empty(), ConfigError,
             "comparing WKV variants: no ", options.variants.empty() ? "variants" : "contexts",
             " are given");
  for (const int64_t ctx : options.contexts)
    RWKV_CHECK(ctx >= 1, ConfigError, "comparing WKV variants: a context of ", ctx,
               ", expected at least 1");
  const int64_t longest = *std::ranges::max_element(options.contexts);
  const int64_t tokens = (count - 1) / longest * longest;
  RWKV_CHECK(tokens > 0, IoError, "comparing WKV variants: ", count,
             " tokens hold no window of context ", longest, " (and one token to predict); take ",
             "more tokens or shorter contexts");
  WkvComparison result;
  result.tokens = tokens;
  result.bin = std::max<int64_t>(1, (longest + options.bins - 1) / options.bins);
  for (const int64_t ctx : options.contexts)
    result.rows.push_back({.context = ctx, .windows = tokens / ctx});
  std::vector<std::vector<float>> reference(options.contexts.size());
  int64_t finished = 0;
  const int64_t total = tokens * std::ssize(options.variants) * std::ssize(options.contexts);
  for (const std::string& variant : options.variants) {
    EngineOptions o = engine_options;
    o.wkv = variant;
    Engine engine(model, weights, o);
    result.variants.push_back(model.wkv_name({.batch = 1,
                                              .tokens = std::min(longest, o.prefill_tokens),
                                              .state = true,
                                              .wkv = variant,
                                              .device = o.device,
                                              .dtype = o.dtype}));
    for (size_t i = 0; i < options.contexts.size(); ++i) {
      const int64_t ctx = options.contexts[i];
      const auto losses =
          window_losses(engine, tokens, read, ctx, options.batch_tokens, [&](int64_t n) {
            finished += n;
            if (progress) progress(finished, total);
          });
      if (reference[i].empty()) reference[i] = losses;
      WkvComparison::Row& row = result.rows[i];
      row.loss.push_back(mean(losses));
      row.broken.push_back(broken_windows(losses, ctx));
      RWKV_CHECK(row.broken.front() == 0, NonFiniteError, "comparing WKV variants: the loss under ",
                 result.variants.front(), " is not finite in ", row.broken.front(), " of ",
                 row.windows, " windows of context ", ctx,
                 "; the others are compared with it, so take another first variant or model");
      const std::vector<double> differences = window_differences(reference[i], losses, ctx);
      row.difference.push_back(row.broken.back() == 0 ? row.loss.back() - row.loss.front()
                                                      : average_of(differences));
      row.error.push_back(standard_error(differences));
      if (ctx == longest && std::ssize(result.by_position) < std::ssize(result.variants))
        result.by_position.push_back(position_differences(reference[i], losses, ctx, result.bin));
    }
  }
  return result;
}

}  // namespace rwkv
