#include <algorithm>
#include <vector>

#include "inference/decode_runner.h"
#include "inference/serving.h"

namespace rwkv {
namespace {

constexpr int64_t kPrefill = 2048;
/// The largest bucket; more sequences take several steps.
constexpr int64_t kLargest = 1024;

/// Powers of two up to the number of slots, which is the last.
std::vector<int64_t> buckets_of(const ServingOptions& o) {
  if (o.weights == DType::kF32) return {};  // every sequence by itself
  const int64_t largest = std::min(o.runner.slots, kLargest);
  if (o.exact) return {largest};
  std::vector<int64_t> buckets;
  for (int64_t b = 2; b < largest; b *= 2) buckets.push_back(b);
  if (largest > 1) buckets.push_back(largest);
  return buckets;
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
        options_{.prefill_tokens =
                     o.runner.prefill_tokens > 0 ? o.runner.prefill_tokens : kPrefill},
        engine_(
            o.weights == DType::kF32
                ? std::make_unique<Engine>(model, weights, decode_engine_options(model_, options_))
                : nullptr),
        runner_(make_decode_runner(model_, model.config(), engine_.get(), options_)) {}
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
