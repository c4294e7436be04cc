#include <algorithm>
#include <vector>

#include "inference/decode_runner.h"
#include "inference/serving.h"
#include "inference/warm_up.h"

namespace rwkv {
namespace {

constexpr int64_t kPrefill = 2048;
/// DecodeRunnerOptions::shared_rows. Exact: what every short prompt costs, also one alone, so not
/// much more than the weights take to read.
constexpr int64_t kSharedRows = 256, kFastRows = 1024;
/// The largest bucket; more sequences take several steps.
constexpr int64_t kLargest = 1024;
/// The smallest one: fewer rows take hardly less time.
constexpr int64_t kSmallest = 8;

/// Powers of two up to the number of slots, which is the last.
std::vector<int64_t> buckets_of(const ServingOptions& o) {
  if (o.weights == DType::kF32) return {};  // every sequence by itself
  const int64_t largest = std::min(o.runner.slots, kLargest);
  std::vector<int64_t> buckets;
  for (int64_t b = kSmallest; b < largest; b *= 2) buckets.push_back(b);
  buckets.push_back(largest);
  return buckets;
}

DecodeRunnerOptions runner_options(const ServingOptions& o) {
  const int64_t longest = o.runner.prefill_tokens > 0 ? o.runner.prefill_tokens : kPrefill;
  return {.prefill_tokens = longest,
          .shared_rows = std::min(longest, o.exact ? kSharedRows : kFastRows),
          .exact = o.exact};
}

class DecodeServing : public Serving {
 public:
  DecodeServing(const Model& model, const ParamStore& weights, const ServingOptions& o)
      : context_(Device::kCuda),
        model_(context_, model, weights,
               {.dtype = o.weights,
                .half_state = o.half_state,
                .slots = o.runner.slots,
                .buckets = buckets_of(o),
                .prefill = o.weights != DType::kF32}),
        options_(runner_options(o)),
        engine_(
            o.weights == DType::kF32
                ? std::make_unique<Engine>(model, weights, decode_engine_options(model_, options_))
                : nullptr),
        runner_(make_decode_runner(model_, model.config(), engine_.get(), options_)) {
    warm_up(*runner_, model_.options().buckets);
  }
  SequenceRunner& runner() override { return *runner_; }

 private:
  Context context_;
  DecodeModel model_;
  DecodeRunnerOptions options_;
  std::unique_ptr<Engine> engine_;  ///< prompts with f32 weights
  std::unique_ptr<SequenceRunner> runner_;
};

}  // namespace

std::unique_ptr<Serving> make_decode_serving(const Model& model, const ParamStore& weights,
                                             const ServingOptions& options) {
  return std::make_unique<DecodeServing>(model, weights, options);
}

}  // namespace rwkv
