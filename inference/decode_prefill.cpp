#include "inference/decode_prefill.h"

#include <algorithm>
#include <memory>

#include "inference/stage_times.h"
#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "kernels/core/gemm.h"

namespace rwkv {
namespace {

/// A piece never takes less time than about so many rows: all weights are read.
constexpr int64_t kLeastWork = 128;

int64_t rounded(int64_t n) {
  return (n + decode::kPromptRows - 1) / decode::kPromptRows * decode::kPromptRows;
}

}  // namespace

DecodePrefill::DecodePrefill(DecodeModel& model, const PrefillOptions& options)
    : model_(model), options_(options) {
  RWKV_CHECK(options_.tokens >= 1 && options_.tokens <= (1 << 20) &&
                 rounded(options_.tokens) == options_.tokens,
             ConfigError, "prefill: pieces of ", options_.tokens,
             " tokens, expected a multiple of ", decode::kPromptRows);
  RWKV_CHECK(options_.batch >= 1 && options_.batch <= 4096, ConfigError,
             "prefill: ", options_.batch, " sequences at a time, expected 1 to 4096");
  RWKV_CHECK(model.options().prefill, ConfigError,
             "prefill: the model was made for decoding alone (DecodeOptions::prefill)");
  if (options_.rows == 0) options_.rows = options_.batch * options_.tokens;
  RWKV_CHECK(options_.rows >= options_.tokens, ConfigError, "prefill: calls of ", options_.rows,
             " rows, expected at least the ", options_.tokens, " of a piece");
  // Slots and numbers of tokens; then the tokens; then, for losses, their targets.
  const int64_t batch = options_.batch, rows = options_.rows, vocab = model.layout().shape.vocab;
  const TensorSpec ids({2 * batch + (options_.losses ? 2 : 1) * rows}, DType::kI32),
      logits({batch, vocab}), losses({options_.losses ? rows : 1}),
      activations({static_cast<int64_t>(most_bytes())}, DType::kI8);
  work_ = Arena(Device::kCuda,
                align_up(ids.bytes()) + align_up(logits.bytes()) + align_up(losses.bytes()) +
                    align_up(activations.bytes()),
                "prefill");
  ids_ = work_.take(ids, "slots and tokens");
  all_logits_ = work_.take(logits, "logits");
  losses_ = work_.take(losses, "losses");
  activations_ = work_.take(activations, "activations");
  host_ = HostBuffer(Device::kCuda, ids.bytes());
}

size_t DecodePrefill::bytes_of(const Shape& shape) const {
  return decode::prefill_bytes(model_.layout(), static_cast<int>(shape.first),
                               static_cast<int>(shape.second), options_.losses);
}

size_t DecodePrefill::most_bytes() const {
  size_t most = 0;
  for (int64_t tokens = padded(1);; tokens = padded(tokens + 1)) {
    // Few sequences may be cut into segments, which takes memory of its own.
    for (int64_t batch = 1; batch <= options_.batch && batch * tokens <= options_.rows; ++batch)
      most = std::max(most, bytes_of({batch, tokens}));
    if (tokens == options_.tokens) return most;
  }
}

int64_t DecodePrefill::padded(int64_t n) const {
  int64_t rows = decode::kPromptRows;
  while (rows < n) {
    const int64_t half = rows + rows / 2;
    if (rows >= 2 * decode::kPromptRows && half >= n) {
      rows = half;
      break;
    }
    rows *= 2;
  }
  return std::min(rows, options_.tokens);
}

int64_t DecodePrefill::piece(int64_t left) const {
  RWKV_ASSERT(left >= 1, "piece of ", left);
  if (left >= options_.tokens) return options_.tokens;
  const int64_t all = padded(left);
  // The longest piece that fills its rows.
  int64_t full = decode::kPromptRows;
  while (padded(full + 1) <= left) full = padded(full + 1);
  if (full >= left) return left;
  const auto work = [&](int64_t n) { return std::max(kLeastWork, padded(n)); };
  return work(full) + work(left - full) < std::max(kLeastWork, all) ? full : left;
}

void DecodePrefill::send(const Shape& shape, std::span<const int64_t> slots,
                         std::span<const std::span<const int32_t>> ids,
                         std::span<const int32_t> targets) {
  Context& ctx = model_.context();
  ctx.synchronize("ids of a prompt");  // the last copy may be on its way still
  const auto batch = static_cast<size_t>(shape.first), tokens = static_cast<size_t>(shape.second);
  auto* const host = reinterpret_cast<int32_t*>(host_.data());
  const size_t rows = batch * tokens, used = 2 * batch + rows * (targets.empty() ? 1 : 2);
  std::fill_n(host, used, 0);
  for (size_t i = 0; i < slots.size(); ++i) {
    host[i] = static_cast<int32_t>(slots[i]);
    host[batch + i] = static_cast<int32_t>(ids[i].size());
    std::ranges::copy(ids[i], host + 2 * batch + i * tokens);
  }
  if (!targets.empty()) {
    std::fill_n(host + 2 * batch + rows, rows, -1);
    std::ranges::copy(targets, host + 2 * batch + rows);
  }
  const TensorSpec spec({static_cast<int64_t>(used)}, DType::kI32);
  copy(ctx, TensorView(ids_.data, spec, Device::kCuda), TensorView(host, spec));
}

void DecodePrefill::queue(const Shape& shape, bool losses,
                          const std::function<void(const char*)>* mark) {
  const auto [batch, tokens] = shape;
  const auto* const ids = ids_.as<int32_t>();
  decode::PrefillCall call = model_.prefill_call();
  call.batch = static_cast<int>(batch);
  call.tokens = static_cast<int>(tokens);
  call.slots = ids;
  call.counts = ids + batch;
  call.ids = ids + 2 * batch;
  call.logits = all_logits_.f32();
  if (losses) {
    call.losses = losses_.f32();
    call.targets = call.ids + batch * tokens;
  }
  call.work = static_cast<std::byte*>(activations_.data);
  call.mark = mark;
  decode::prefill(model_.context(), model_.layout(), model_.plain_layout(), model_.options().dtype,
                  call, events_);
}

const LaunchGraph& DecodePrefill::graph_of(const Shape& shape) {
  LaunchGraph& graph = graphs_[shape];
  if (!graph) {
    Context& ctx = model_.context();
    // Products are tried out on sequences that stand still, in the sizes that take long.
    send(shape, {}, {});
    measure_gemm_algorithms(ctx, shape.second == options_.tokens);
    queue(shape);
    measure_gemm_algorithms(ctx, false);
    ctx.synchronize("first prompt of a size");
    graph = LaunchGraph(ctx, [&] { queue(shape); });
  }
  return graph;
}

void DecodePrefill::run(std::span<const int64_t> slots,
                        std::span<const std::span<const int32_t>> ids, int64_t fill_to) {
  RWKV_CHECK(slots.size() == ids.size() && !slots.empty() && std::ssize(slots) <= options_.batch,
             ShapeError, "prefill: ", slots.size(), " slots and tokens of ", ids.size(),
             " sequences, expected 1 to ", options_.batch, " of both");
  int64_t longest = 1;
  const int64_t vocab = model_.layout().shape.vocab;
  for (size_t i = 0; i < slots.size(); ++i) {
    RWKV_CHECK(slots[i] >= 0 && slots[i] < model_.options().slots, ConfigError, "prefill: slot ",
               slots[i], " of ", model_.options().slots);
    for (size_t j = 0; j < i; ++j)
      RWKV_CHECK(slots[i] != slots[j], ConfigError, "prefill: slot ", slots[i], " twice");
    for (const int32_t id : ids[i])
      RWKV_CHECK(id >= 0 && id < vocab, ConfigError, "prefill: token id ", id,
                 " is outside of the model's vocabulary, 0 to ", vocab - 1);
    longest = std::max<int64_t>(longest, std::ssize(ids[i]));
  }
  RWKV_CHECK(longest <= options_.tokens, ShapeError, "prefill: ", longest,
             " tokens in one piece, expected at most ", options_.tokens);
  const Shape shape{std::max(std::ssize(slots), fill_to), padded(longest)};
  RWKV_CHECK(shape.first <= options_.batch && shape.first * shape.second <= options_.rows,
             ShapeError, "prefill: ", shape.first, " sequences of ", shape.second,
             " rows, expected at most ", options_.batch, " and ", options_.rows, " rows in all");
  RWKV_ASSERT(bytes_of(shape) <= activations_.bytes(), "activations of a prompt");
  const LaunchGraph& graph = graph_of(shape);
  send(shape, slots, ids);
  graph.launch(model_.context());
  last_ = shape;
  logits_ = TensorView(all_logits_.data, TensorSpec({shape.first, vocab}), Device::kCuda);
}

void DecodePrefill::run_again() {
  RWKV_ASSERT(last_.first > 0, "no prompt has run");
  graph_of(last_).launch(model_.context());
}

std::vector<float> DecodePrefill::losses(int64_t slot, std::span<const int32_t> ids) {
  RWKV_CHECK(options_.losses, ConfigError, "prefill: losses were not asked for (PrefillOptions)");
  RWKV_CHECK(slot >= 0 && slot < model_.options().slots && ids.size() >= 2, ConfigError,
             "losses of ", ids.size(), " tokens, slot ", slot, " of ", model_.options().slots);
  for (const int32_t id : ids)
    RWKV_CHECK(id >= 0 && id < model_.layout().shape.vocab, ConfigError, "losses: token id ", id,
               " is outside of the model's vocabulary");
  std::vector<float> all(ids.size());
  for (size_t at = 0; at < ids.size();) {
    const auto n = static_cast<size_t>(piece(std::ssize(ids) - static_cast<int64_t>(at)));
    const std::span<const int32_t> now = ids.subspan(at, n);
    const Shape shape{1, padded(std::ssize(now))};
    send(shape, {&slot, 1}, {&now, 1}, ids.subspan(at + 1, std::min(n, ids.size() - at - 1)));
    queue(shape, true);
    const TensorSpec spec({static_cast<int64_t>(n)});
    copy(model_.context(), TensorView(all.data() + at, spec),
         TensorView(losses_.data, spec, Device::kCuda));
    at += n;
  }
  all.pop_back();  // nothing follows the last token
  return all;
}

std::vector<std::pair<std::string, double>> DecodePrefill::stages() {
  RWKV_ASSERT(last_.first > 0, "no prompt has run");
  Context& ctx = model_.context();
  // The GPU is kept busy while the host gets ahead of it.
  for (int i = 0; i < 4; ++i) graph_of(last_).launch(ctx);
  return time_stages(ctx, [&](const StageMark& mark) { queue(last_, false, &mark); });
}

}  // namespace rwkv
