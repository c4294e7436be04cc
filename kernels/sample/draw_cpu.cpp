// Built with -ffp-contract=off (kernels/ops/sources.cmake), see draw.h.

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/core/error.h"
#include "kernels/sample/draw.h"

namespace rwkv::sample {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
/// Running sums of weights are looked through by so many at a time.
constexpr size_t kStride = 256;

/// An integer that is ordered like the float; NaNs are beyond the infinities.
int32_t ordered(float x) {
  const auto bits = std::bit_cast<int32_t>(x);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
float unordered(int32_t i) {
  return std::bit_cast<float>(i ^ ((i >> 31) & 0x7fffffff));
}

void make_distances(std::span<const float> logits, float largest, std::vector<float>& out) {
  out.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) out[i] = largest - logits[i];
}

void make_weights(std::span<const float> distances, float inverse_temperature,
                  std::vector<uint64_t>& out) {
  out.resize(distances.size());
  for (size_t i = 0; i < distances.size(); ++i)
    out[i] = weight_of(distances[i], inverse_temperature);
}

uint64_t sum_of(std::span<const uint64_t> x) {
  uint64_t sum = 0;
  for (const uint64_t w : x) sum += w;
  return sum;
}

struct Item {
  uint32_t key;
  uint64_t amount;
};

/// The bucket in which the sum of amounts reaches the target, and what lies before it.
class Histogram {
 public:
  Histogram() : amount_(kBuckets, 0), count_(kBuckets, 0) {}
  void add(uint32_t bucket, uint64_t amount) {
    amount_[bucket] += amount;
    ++count_[bucket];
  }
  uint32_t find(uint64_t target) {
    uint32_t b = 0;
    while (b + 1 < kBuckets && before_ + amount_[b] < target) before_ += amount_[b++];
    return b;
  }
  uint64_t before() const { return before_; }
  uint64_t count(uint32_t bucket) const { return count_[bucket]; }

 private:
  std::vector<uint64_t> amount_, count_;
  uint64_t before_ = 0;
};

/// Keeps tokens by ascending distance until their amounts reach the target; all of those that are
/// equal to the last one, unless amounts are 1 each (`counts`). weights: null where they count.
Cut search(std::span<const float> distances, const uint64_t* weights, uint64_t target) {
  KeyRange range;
  Histogram first;
  for (size_t i = 0; i < distances.size(); ++i) {
    const uint32_t key = float_bits(distances[i]);
    if (key < kKeyEnd) first.add(range.bucket(key, 0), weights == nullptr ? 1 : weights[i]);
  }
  uint32_t bucket = first.find(target);
  uint64_t before = first.before(), count = first.count(bucket);
  range = range.inside(bucket, 0);
  std::vector<Item> items;
  for (size_t i = 0; i < distances.size() && count > 1; ++i) {
    const uint32_t key = float_bits(distances[i]);
    if (range.holds(key)) items.push_back({key, weights == nullptr ? 1 : weights[i]});
  }
  while (count > 1 && range.high - range.low > 1) {
    const int shift = range.shift();
    Histogram next;
    for (const Item& x : items) next.add(range.bucket(x.key, shift), x.amount);
    bucket = next.find(target - before);
    before += next.before();
    count = next.count(bucket);
    range = range.inside(bucket, shift);
    std::erase_if(items, [&](const Item& x) { return !range.holds(x.key); });
  }
  Cut cut{.end = range.high};
  if (weights == nullptr && target - before < count) {
    cut.tie = range.low;
    cut.ties = target - before;
  }
  return cut;
}

}  // namespace

std::string bad_logit(int64_t token, float logit) {
  return str("sampling: the logit of token ", token, " is ", logit,
             "; the model's weights or state are broken");
}
std::string no_logit(int64_t vocab) {
  return str("sampling: all ", vocab, " logits are -inf");
}

size_t check_logits(std::span<const float> logits) {
  RWKV_CHECK(!logits.empty(), ShapeError, "sampling from an empty vector of logits");
  int32_t largest = std::numeric_limits<int32_t>::min();
  int32_t smallest = std::numeric_limits<int32_t>::max();
  for (const float x : logits) {
    largest = std::max(largest, ordered(x));
    smallest = std::min(smallest, ordered(x));
  }
  if (largest >= ordered(kInf) || smallest < ordered(-kInf))
    for (size_t i = 0; i < logits.size(); ++i)
      if (!(logits[i] < kInf)) throw NonFiniteError(bad_logit(static_cast<int64_t>(i), logits[i]));
  if (largest == ordered(-kInf)) throw NonFiniteError(no_logit(std::ssize(logits)));
  // By value: the integers tell the zeros apart.
  return static_cast<size_t>(std::ranges::find(logits, unordered(largest)) - logits.begin());
}

void adjust(std::span<float> logits, const DrawRow& row, std::span<const Adjustment> list) {
  for (const Adjustment& a : list) {
    if (a.token < 0 || static_cast<size_t>(a.token) >= logits.size()) continue;
    float& x = logits[static_cast<size_t>(a.token)];
    x = adjusted(x, a, row);
  }
}

void weigh(std::span<const float> logits, const DrawRow& row, Weights& out) {
  make_distances(logits, logits[check_logits(logits)], out.distances);
  const std::span<const float> distances = out.distances;
  out.tokens.clear();
  const auto finish = [&] { out.total = sum_of(out.weights); };
  if (row.top_p == 0 && row.top_k == 0 && row.farthest == kInf) {
    make_weights(distances, row.inverse_temperature, out.weights);
    return finish();
  }
  Cut cut;
  if (row.top_p != 0) {
    make_weights(distances, 1, out.weights);
    cut = search(distances, out.weights.data(), top_p_target(row.top_p, sum_of(out.weights)));
  }
  const auto finite = [](float d) { return d < kInf; };
  if (row.top_k != 0 && row.top_k < std::ranges::count_if(distances, finite)) {
    const Cut by_count = search(distances, nullptr, static_cast<uint64_t>(row.top_k));
    cut = {std::min(cut.end, by_count.end), by_count.tie, by_count.ties};
  }
  out.weights.clear();
  for (size_t i = 0; i < distances.size(); ++i) {
    const uint32_t key = float_bits(distances[i]);
    if (key >= cut.end || !(distances[i] <= row.farthest)) continue;
    if (key == cut.tie) {
      if (cut.ties == 0) continue;
      --cut.ties;
    }
    out.tokens.push_back(static_cast<int32_t>(i));
    out.weights.push_back(weight_of(distances[i], row.inverse_temperature));
  }
  finish();
}

uint64_t total_weight(std::span<const float> logits, float largest) {
  uint64_t sum = 0;
  for (const float x : logits) sum += weight_of(largest - x, 1);
  return sum;
}

int32_t pick(const Weights& w, uint64_t random) {
  const uint64_t target = high_product(random, w.total);
  const std::span<const uint64_t> all(w.weights);
  uint64_t before = 0;
  size_t i = 0;
  for (; i + kStride <= all.size(); i += kStride) {
    const uint64_t next = before + sum_of(all.subspan(i, kStride));
    if (next > target) break;
    before = next;
  }
  for (; i < all.size(); ++i) {
    before += all[i];
    if (before > target) break;
  }
  RWKV_ASSERT(i < all.size(), "sampling: weights sum up to ", before, ", not to ", w.total);
  return w.tokens.empty() ? static_cast<int32_t>(i) : w.tokens[i];
}

}  // namespace rwkv::sample
