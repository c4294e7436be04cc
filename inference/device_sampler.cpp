#include "inference/device_sampler.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

using sample::Adjustment;
using sample::AdjustmentUpdate;
using sample::DrawResult;
using sample::DrawRow;
using sample::TopEntry;

/// Adjustments of a slot: tokens that differ, in prompt (repetition penalty only) and output.
constexpr int64_t kListCapacity = 4096;
/// Changes that one step sends; whoever comes too late draws on the host that once.
constexpr size_t kMostUpdates = 16384;
static_assert(kMostUpdates >= static_cast<size_t>(kListCapacity));
static_assert(std::is_trivially_copyable_v<DrawRow> && std::is_trivially_copyable_v<DrawResult>);

TensorSpec bytes_of(size_t n) {
  return TensorSpec({static_cast<int64_t>(n)}, DType::kI8);
}
template <class T>
T* as(const TensorView& v) {
  return static_cast<T*>(v.data);
}
template <class T>
T* as(const HostBuffer& b) {
  return reinterpret_cast<T*>(b.data());
}
/// Bytes [begin, end) of a device buffer and of its host side.
TensorView part(const TensorView& v, size_t begin, size_t end) {
  return {static_cast<std::byte*>(v.data) + begin, bytes_of(end - begin), Device::kCuda};
}
TensorView part(const HostBuffer& b, size_t begin, size_t end) {
  return {b.data() + begin, bytes_of(end - begin)};
}

}  // namespace

DeviceSampler::DeviceSampler(Context& ctx, int64_t slots, int64_t vocab)
    : ctx_(ctx), vocab_(vocab), slots_(static_cast<size_t>(slots)) {
  RWKV_ASSERT(takes(vocab), "draws on a GPU from a vocabulary of ", vocab);
  const auto n = static_cast<size_t>(slots);
  const size_t rows = n * sizeof(DrawRow), updates = kMostUpdates * sizeof(AdjustmentUpdate),
               results = n * sizeof(DrawResult),
               top = n * sample::kParts * sample::kMostTop * sizeof(TopEntry);
  arena_ = Arena(Device::kCuda,
                 align_up(rows) + align_up(updates) + align_up(results) + align_up(top), "draws");
  rows_ = arena_.take(bytes_of(rows), "draws");
  updates_ = arena_.take(bytes_of(updates), "penalties on their way");
  results_ = arena_.take(bytes_of(results), "drawn tokens");
  top_ = arena_.take(bytes_of(top), "log-probabilities");
  host_rows_ = HostBuffer(Device::kCuda, rows);
  host_updates_ = HostBuffer(Device::kCuda, updates);
  host_results_ = HostBuffer(Device::kCuda, results);
}

/// Most servers never need them.
bool DeviceSampler::make_lists() {
  if (lists_.bytes() > 0 || lists_failed_) return !lists_failed_;
  const size_t n = slots_.size() * static_cast<size_t>(kListCapacity);
  const size_t list = n * sizeof(Adjustment), before = n * sizeof(float);
  try {
    lists_ = Arena(Device::kCuda, align_up(list) + align_up(before), "penalties of all sequences");
  } catch (const DeviceError&) {
    lists_failed_ = true;  // no room: such requests are drawn on the host
    return false;
  }
  adjustments_ = lists_.take(bytes_of(list), "penalties");
  before_ = lists_.take(bytes_of(before), "logits without penalties");
  return true;
}

std::optional<size_t> DeviceSampler::send_list(int64_t slot, const DrawRequest& request) {
  const std::span<const Adjustment> list = request.sampler->adjustments();
  if (list.empty()) return 0;
  if (std::ssize(list) > kListCapacity || !make_lists()) return std::nullopt;
  Slot& s = slots_[static_cast<size_t>(slot)];
  const bool known = s.id == request.id;
  const size_t n = known ? (s.changed ? 1 : 0) : list.size();
  if (updates_used_ + n > kMostUpdates) {
    s.id = 0;  // all of it the next time
    return std::nullopt;
  }
  auto* const to = as<AdjustmentUpdate>(host_updates_) + updates_used_;
  for (size_t i = 0; i < n; ++i) {
    const size_t which = known ? *s.changed : i;
    to[i] = {.slot = static_cast<int32_t>(slot),
             .index = static_cast<int32_t>(which),
             .value = list[which]};
  }
  updates_used_ += n;
  s = {.id = request.id, .changed = std::nullopt};
  return list.size();
}

void DeviceSampler::queue(std::span<const int64_t> slots, std::span<const DrawRequest> requests,
                          float* logits) {
  const size_t first = queued_.size(), first_update = updates_used_;
  RWKV_ASSERT(slots.size() == requests.size() && first + slots.size() <= slots_.size(),
              "draws for ", first + slots.size(), " rows of ", slots_.size());
  bool any_adjustments = false, any_top = false;
  auto* const rows = as<DrawRow>(host_rows_);
  const TensorSpec one({vocab_});
  const size_t row_bytes = one.bytes();
  for (size_t i = 0; i < slots.size(); ++i) {
    const DrawRequest& request = requests[i];
    Row row{slots[i], request, std::nullopt};
    DrawRow draw = request.sampler->row();
    draw.vocab = static_cast<int32_t>(request.vocab > 0 ? request.vocab : vocab_);
    draw.slot = static_cast<int32_t>(slots[i]);
    const auto top = std::min<int64_t>(request.top_log_probs, vocab_);
    const auto list = top > sample::kMostTop ? std::nullopt : send_list(slots[i], request);
    draw.adjustments = list ? static_cast<int32_t>(*list) : -1;
    draw.top = static_cast<int32_t>(list ? top : -1);
    if (!list) row.host = host_rows_used_++;
    any_adjustments |= draw.adjustments > 0;
    any_top |= draw.top >= 0;
    rows[first + i] = draw;
    queued_.push_back(row);
  }
  if (host_rows_used_ * row_bytes > host_logits_.bytes()) {
    ctx_.synchronize("logits on their way to a buffer that grows");
    HostBuffer larger(Device::kCuda, 2 * host_rows_used_ * row_bytes);
    std::memcpy(larger.data(), host_logits_.data(), host_logits_.bytes());
    host_logits_ = std::move(larger);
  }
  for (size_t i = 0; i < slots.size(); ++i)
    if (const auto host = queued_[first + i].host)
      copy_later(ctx_, TensorView(host_logits_.data() + *host * row_bytes, one),
                 TensorView(logits + i * static_cast<size_t>(vocab_), one, Device::kCuda));
  const auto send = [&](const TensorView& to, const HostBuffer& from, size_t begin, size_t end) {
    if (begin < end) copy(ctx_, part(to, begin, end), part(from, begin, end));
  };
  const auto fetch = [&](const HostBuffer& to, const TensorView& from, size_t begin, size_t end) {
    copy_later(ctx_, part(to, begin, end), part(from, begin, end));
  };
  const size_t end = queued_.size();
  send(rows_, host_rows_, first * sizeof(DrawRow), end * sizeof(DrawRow));
  send(updates_, host_updates_, first_update * sizeof(AdjustmentUpdate),
       updates_used_ * sizeof(AdjustmentUpdate));
  constexpr size_t kTopRow = sample::kParts * sample::kMostTop;
  sample::draw_rows(ctx_, {.rows = static_cast<int>(slots.size()),
                           .vocab = vocab_,
                           .logits = logits,
                           .draws = as<DrawRow>(rows_) + first,
                           .adjustments = as<Adjustment>(adjustments_),
                           .before = as<float>(before_),
                           .capacity = kListCapacity,
                           .updates = as<AdjustmentUpdate>(updates_) + first_update,
                           .update_count = static_cast<int>(updates_used_ - first_update),
                           .any_adjustments = any_adjustments,
                           .any_top = any_top,
                           .results = as<DrawResult>(results_) + first,
                           .top = as<TopEntry>(top_) + first * kTopRow});
  fetch(host_results_, results_, first * sizeof(DrawResult), end * sizeof(DrawResult));
  if (!any_top) return;
  if (host_top_.bytes() == 0) host_top_ = HostBuffer(Device::kCuda, top_.bytes());
  fetch(host_top_, top_, first * kTopRow * sizeof(TopEntry), end * kTopRow * sizeof(TopEntry));
}

Drawn DeviceSampler::result(const Row& row, size_t i) const {
  const DrawResult& r = as<DrawResult>(host_results_)[i];
  const DrawRequest& request = row.request;
  Drawn d;
  if (r.token < 0) {
    d.error = r.bad >= 0 ? sample::bad_logit(r.bad, r.bad_logit)
                         : sample::no_logit(request.vocab > 0 ? request.vocab : vocab_);
    return d;
  }
  d.token = r.token;
  if (request.top_log_probs < 0) return d;
  const auto entry = [&](int32_t token, float logit) {
    return TokenLogProb{token, log_prob(logit, r.largest, r.total)};
  };
  d.log_probs = LogProbs{entry(r.token, r.logit), {}};
  if (request.top_log_probs == 0) return d;
  constexpr size_t kTopRow = sample::kParts * sample::kMostTop;
  std::vector<TopEntry> all;
  const TopEntry* const from = as<TopEntry>(host_top_) + i * kTopRow;
  const auto n = static_cast<size_t>(std::min<int64_t>(request.top_log_probs, vocab_));
  for (size_t p = 0; p < sample::kParts; ++p)
    for (size_t k = 0; k < n; ++k)
      if (const TopEntry& e = from[p * sample::kMostTop + k]; e.token >= 0) all.push_back(e);
  std::ranges::sort(all, [](const TopEntry& a, const TopEntry& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  });
  for (size_t k = 0; k < std::min(n, all.size()); ++k)
    d.log_probs->top.push_back(entry(all[k].token, all[k].logit));
  return d;
}

std::span<Drawn> DeviceSampler::finish() {
  ctx_.synchronize("drawn tokens");
  // Those on the host by all threads: they should not hold up the others for long.
  std::vector<DrawRequest> requests;
  std::vector<std::span<const float>> rows;
  const auto v = static_cast<size_t>(vocab_);
  for (const Row& row : queued_) {
    if (!row.host) continue;
    requests.push_back(row.request);
    rows.emplace_back(as<float>(host_logits_) + *row.host * v, v);
  }
  std::vector<Drawn> on_host(rows.size());
  draw_all(requests, rows, on_host, scratch_);
  drawn_.clear();
  for (size_t i = 0; i < queued_.size(); ++i) {
    const Row& row = queued_[i];
    Slot& slot = slots_[static_cast<size_t>(row.slot)];
    if (row.host) {
      drawn_.push_back(std::move(on_host[*row.host]));
      slot.id = 0;
      continue;
    }
    drawn_.push_back(result(row, i));
    if (drawn_.back().token >= 0) slot.changed = row.request.sampler->count(drawn_.back().token);
  }
  queued_.clear();
  updates_used_ = host_rows_used_ = 0;
  return drawn_;
}

}  // namespace rwkv
