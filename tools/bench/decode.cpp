// rwkv-bench decode: one token after the other, random weights.
#include "tools/bench/decode.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "inference/decode_model.h"
#include "kernels/core/error.h"
#include "kernels/core/memory.h"
#include "tools/bench/cuda_timing.h"
#include "tools/bench/model_sizes.h"
#include "tools/bench/wkv_fp16.h"

namespace rwkv::bench {
namespace {

/// Microseconds per layer between the points in time of a step (kernels/decode/step.h): median of
/// the blocks' means over the layers, least and most in brackets.
void print_stages(const std::vector<int64_t>& stamps, const decode::Layout& layout) {
  constexpr double kClocksPerMicrosecond = 1980;  // an H200 under load
  static constexpr const char* kNames[decode::kStamps + 1] = {
      "wait for value", "in",  "wait for in",  "lora",  "wait for lora", "out",
      "wait for out",   "key", "wait for key", "value", "head"};
  const int64_t layers = layout.shape.layers;
  std::vector<std::vector<double>> times(decode::kStamps + 1);
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const auto at = [&](int64_t layer, int64_t what) {
      return stamps[static_cast<size_t>((block * (layers + 1) + layer) * decode::kStamps + what)];
    };
    std::vector<double> sums(decode::kStamps + 1);
    int64_t last = at(0, 0);
    const auto add = [&](size_t to, int64_t now, int64_t divisor) {
      if (now == 0) return;  // the block has no part in it
      sums[to] +=
          static_cast<double>(now - last) / (static_cast<double>(divisor) * kClocksPerMicrosecond);
      last = now;
    };
    for (int64_t l = 0; l < layers; ++l)
      for (int64_t i = 0; i < decode::kStamps; ++i) add(static_cast<size_t>(i), at(l, i), layers);
    add(0, at(layers, 0), layers);
    add(decode::kStamps, at(layers, 1), 1);
    for (size_t i = 0; i < sums.size(); ++i)
      if (sums[i] > 0) times[i].push_back(sums[i]);
  }
  std::printf("  us per layer:");
  for (size_t i = 0; i < times.size(); ++i) {
    auto& t = times[i];
    if (t.empty()) continue;
    std::ranges::sort(t);
    std::printf(" %s %.2f (%.2f-%.2f)%s", kNames[i], t[t.size() / 2], t.front(), t.back(),
                i + 1 < times.size() ? "," : "\n");
  }
}

/// Columns, blocks that share x, blocks that share k, rows of a tile; microseconds of all layers.
void print_plans(DecodeModel& model, int64_t batch) {
  int last = -1;
  for (const auto& [kind, plan, seconds] : model.plan_times(batch)) {
    if (kind != last)
      std::printf("%s  %s:", last < 0 ? "" : "\n", decode::batch_product_name(kind));
    last = kind;
    std::printf(" %d/%d/%d/%d %.0f;", plan.columns, plan.pair, plan.split, plan.height,
                1e6 * seconds);
  }
  std::printf("\n");
}

struct Run {
  Timing time;  ///< of all steps in a row
  int steps = 1;
  double bytes = 0;  ///< read by a step
  double zeros = 0;  ///< of the squared ReLU, where they are not read
};

Run run_one(Context& ctx, DecodeModel& model, const DecodeBenchOptions& o) {
  model.step(0, 1);
  Run run{.steps = o.tokens};
  run.time = cuda_time(ctx, o.repeats, [&] {
    for (int i = 0; i < o.tokens; ++i) model.step_again();
  });
  run.zeros = model.zero_share();
  const bool all = o.no_skip || model.options().stream_value > 0;
  run.bytes = model.layout().token_bytes(all ? 1 : 1 - run.zeros) +
              static_cast<double>(model.state_bytes());
  return run;
}

Run run_batch(Context& ctx, DecodeModel& model, const DecodeBenchOptions& o, int64_t batch) {
  std::vector<int64_t> slots;
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < batch; ++i) {
    slots.push_back(i);
    tokens.push_back(static_cast<int32_t>(i * 61 % 65521));
  }
  model.step_batch(slots, tokens);
  Run run{.steps = std::max(1, o.tokens / 16)};
  run.time = cuda_time(ctx, o.repeats, [&] {
    for (int i = 0; i < run.steps; ++i) model.batch_again(batch);
  });
  run.bytes = model.layout().token_bytes(1) +
              static_cast<double>(batch) * static_cast<double>(model.state_bytes());
  return run;
}

void check_finite(Context& ctx, const TensorView& logits, const std::string& what) {
  std::vector<float> host(static_cast<size_t>(logits.numel()));
  copy(ctx, TensorView(host.data(), logits.spec), logits);
  for (const float x : host)
    RWKV_CHECK(std::isfinite(x), Error, what, ": logits of the benchmark are not finite");
}

}  // namespace

int run_decode(const DecodeBenchOptions& o) {
  const DType state = decode_dtype("state", o.state);
  RWKV_CHECK(state != DType::kBF16, ConfigError, "--state: found bf16, expected f16 or f32");
  std::vector<int64_t> batches = o.batches.empty() ? std::vector<int64_t>{1} : o.batches;
  std::ranges::sort(batches);
  Context ctx(Device::kCuda);
  const double copied = cuda_copy_bandwidth(ctx);
  std::printf("%s\ncopy bandwidth %.1f GB/s (read + write); steps in a row, medians of %d\n",
              to_string(environment(Device::kCuda)).c_str(), 1e-9 * copied, o.repeats);
  auto doc = nlohmann::ordered_json::parse(record_head("decode", Device::kCuda));
  doc["copy_bytes_per_second"] = copied;
  doc["rows"] = nlohmann::ordered_json::array();
  std::printf("%5s %6s %6s %5s %5s %5s %11s %7s %11s %9s %7s %7s\n", "model", "batch", "mode",
              "type", "state", "skip", "us/step", "spread", "tokens/s", "GB/s", "% copy", "zeros");
  for (const std::string& size : o.sizes) {
    std::vector<int64_t> buckets;
    for (const int64_t b : batches)
      if (b > 1 || o.exact) buckets.push_back(b);
    DecodeModel model(ctx, public_model(size), 1,
                      {.dtype = decode_dtype("dtype", o.dtype),
                       .half_state = state == DType::kF16,
                       .slots = batches.back(),
                       .buckets = buckets,
                       .skip = !o.no_skip,
                       .vendor = o.vendor,
                       .plans_tried = o.plans,
                       .stream_value = o.stream_value,
                       .splits = o.splits,
                       .slice = o.slice,
                       .nap = o.nap,
                       .ring = o.ring,
                       .flight = o.flight});
    // (sequences, by the kernel for one)
    std::vector<std::pair<int64_t, bool>> runs;
    for (const int64_t b : batches) {
      if (b == 1) runs.emplace_back(1, true);
      if (b > 1 || o.exact) runs.emplace_back(b, false);
    }
    for (const auto& [batch, one] : runs) {
      const char* const mode = one ? "one" : o.vendor ? "vendor" : "exact";
      const Run run = one ? run_one(ctx, model, o) : run_batch(ctx, model, o, batch);
      check_finite(ctx, one ? model.logits() : model.batch_logits(), size);
      const double seconds = run.time.median / run.steps;
      const double rate = static_cast<double>(batch) / seconds;
      const bool skip = one && !o.no_skip && model.options().stream_value == 0;
      std::printf("%5s %6lld %6s %5s %5s %5s %11.2f %6.1f%% %11.1f %9.1f %6.1f%% %6.1f%%\n",
                  size.c_str(), static_cast<long long>(batch), mode, o.dtype.c_str(),
                  o.state.c_str(), skip ? "yes" : "no", 1e6 * seconds, 100 * run.time.spread, rate,
                  1e-9 * run.bytes / seconds, 100 * run.bytes / seconds / copied, 100 * run.zeros);
      if (o.stages && one) print_stages(model.stamps(), model.layout());
      if (o.stages && !one) {
        std::printf("  us, launched one by one:");
        for (const auto& [name, s] : model.batch_stages(batch))
          std::printf(" %s %.1f;", name.c_str(), 1e6 * s);
        std::printf("\n");
      }
      if (o.plan_times && !one) print_plans(model, batch);
      std::fflush(stdout);
      doc["rows"].push_back({{"model", size},
                             {"batch", batch},
                             {"mode", mode},
                             {"dtype", o.dtype},
                             {"state", o.state},
                             {"skip", skip},
                             {"splits", model.layout().splits},
                             {"slice", model.layout().slice},
                             {"median_s", seconds},
                             {"min_s", run.time.minimum / run.steps},
                             {"spread", run.time.spread},
                             {"repeats", o.repeats},
                             {"tokens_per_s", rate},
                             {"bytes_read", run.bytes},
                             {"share_of_copy", run.bytes / seconds / copied},
                             {"zero_share", run.zeros}});
    }
  }
  if (!o.json.empty()) write_file(o.json, record_text(doc.dump()));
  return 0;
}

}  // namespace rwkv::bench
