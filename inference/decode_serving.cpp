#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include "inference/decode_runner.h"
#include "inference/serving.h"

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

/// A bucket's first use takes time: not in the middle of somebody's text.
void use_all(SequenceRunner& runner, std::span<const int64_t> buckets) {
  std::vector<int64_t> slots;
  for (const int64_t b : buckets) {
    while (std::ssize(slots) < b) slots.push_back(std::ssize(slots));
    runner.decode(slots, std::vector<int32_t>(slots.size(), 0));
  }
  for (const int64_t s : slots) runner.reset(s);
  // The longest piece of a prompt: its products are tried out, shorter ones record launches alone.
  const int64_t longest = runner.prefill_piece(std::numeric_limits<int32_t>::max());
  if (longest > 1) runner.prefill(0, std::vector<int32_t>(static_cast<size_t>(longest), 0));
  // Those that short prompts share.
  for (int64_t n = 1; runner.prefill_group(n).batch > 1; ++n) {
    n = runner.prefill_group(n).group;
    runner.prefill(0, std::vector<int32_t>(static_cast<size_t>(n), 0));
  }
  runner.reset(0);
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
    use_all(*runner_, model_.options().buckets);
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
