// rwkv-bench prefill: whole prompts, logits after the last token.
#include "tools/bench/prefill.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "inference/decode_prefill.h"
#include "inference/load.h"
#include "kernels/core/error.h"
#include "kernels/core/memory.h"
#include "kernels/wkv/registry.h"
#include "tools/bench/cuda_timing.h"
#include "tools/bench/model_sizes.h"
#include "tools/bench/wkv_fp16.h"

namespace rwkv::bench {
namespace {

/// Of the matrices and of the recurrence per token, and of the head for one row per sequence.
double prompt_flops(const decode::Shape& s, int64_t batch, int64_t tokens) {
  const auto d = static_cast<double>(s.width), f = static_cast<double>(s.ffn);
  double ranks = 0;
  for (const int r : s.rank) ranks += r;
  const double rows = static_cast<double>(batch * tokens);
  return rows * s.layers * 2 * (4 * d * d + 2 * d * f + 2 * d * ranks) +
         s.layers * wkv7_forward_flops({batch, tokens, s.heads(), decode::kHeadSize, true}) +
         2 * static_cast<double>(batch) * d * s.vocab;
}

void check_finite(Context& ctx, const TensorView& logits, const std::string& what) {
  std::vector<float> host(static_cast<size_t>(logits.numel()));
  copy(ctx, TensorView(host.data(), logits.spec), logits);
  for (const float x : host)
    RWKV_CHECK(std::isfinite(x), Error, what, ": logits of the benchmark are not finite");
}

class PrefillBench {
 public:
  explicit PrefillBench(const PrefillBenchOptions& o)
      : o_(o), dtype_(decode_dtype("dtype", o.dtype)), state_(decode_dtype("state", o.state)) {
    RWKV_CHECK(dtype_ != DType::kF32, ConfigError, "--dtype: found f32, expected f16 or bf16");
    RWKV_CHECK(state_ != DType::kBF16, ConfigError, "--state: found bf16, expected f16 or f32");
    RWKV_CHECK(o.text.empty() || !o.models.empty(), ConfigError, "--text needs --model");
    RWKV_CHECK(o.piece >= decode::kPromptRows && o.piece % decode::kPromptRows == 0, ConfigError,
               "--piece: found ", o.piece, ", expected a multiple of ", decode::kPromptRows);
    tokens_ = o.tokens.empty() ? std::vector<int64_t>{1024, 4096} : o.tokens;
    for (const int64_t n : tokens_)
      RWKV_CHECK(n >= 1 && (n <= o.piece || n % o.piece == 0), ConfigError, "--tokens: found ", n,
                 ", expected up to --piece (", o.piece, ") or a multiple of it");
  }

  int run() {
    copied_ = cuda_copy_bandwidth(ctx_);
    product_ = cuda_gemm_flops(ctx_, dtype_, 8192, 8192, 8192);
    std::printf(
        "%s\ncopy bandwidth %.1f GB/s (read + write); product of 8192 x 8192 x 8192 in %s: %.1f "
        "TFLOP/s; medians of %d\n",
        to_string(environment(Device::kCuda)).c_str(), 1e-9 * copied_, o_.dtype.c_str(),
        1e-12 * product_, o_.repeats);
    doc_ = nlohmann::ordered_json::parse(record_head("prefill", Device::kCuda));
    doc_["copy_bytes_per_second"] = copied_;
    doc_["gemm_flop_per_second"] = product_;
    doc_["rows"] = nlohmann::ordered_json::array();
    std::printf("%16s %6s %6s %5s %5s %11s %7s %11s %9s %9s\n", "model", "batch", "tokens", "type",
                "state", "ms", "spread", "tokens/s", "TFLOP/s", "% product");
    for (const std::string& size : o_.sizes) {
      DecodeModel model(ctx_, public_model(size), 1, model_options());
      time(size, model);
    }
    for (const std::string& path : o_.models) {
      const LoadedModel loaded = load_model(path, o_.vocab);
      DecodeModel model(ctx_, *loaded.model, *loaded.weights, model_options());
      time(path, model);
      if (!o_.text.empty()) loss(path, loaded, model);
    }
    if (!o_.json.empty()) write_file(o_.json, record_text(doc_.dump()));
    return 0;
  }

 private:
  DecodeOptions model_options() const {
    return {
        .dtype = dtype_, .half_state = state_ == DType::kF16, .slots = o_.batch, .prefill = true};
  }

  void time(const std::string& name, DecodeModel& model) {
    const int64_t longest = std::min(*std::ranges::max_element(tokens_), o_.piece);
    DecodePrefill prefill(model, {.tokens = (longest + decode::kPromptRows - 1) /
                                            decode::kPromptRows * decode::kPromptRows,
                                  .batch = o_.batch});
    for (const int64_t n : tokens_) {
      const int64_t piece = std::min(n, o_.piece), pieces = n / piece;
      std::vector<int32_t> ids(static_cast<size_t>(o_.batch * piece));
      for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(model.layout().shape.vocab));
      std::vector<int64_t> slots;
      std::vector<std::span<const int32_t>> each;
      for (int64_t b = 0; b < o_.batch; ++b) {
        model.reset(b);
        slots.push_back(b);
        each.push_back(
            std::span(ids).subspan(static_cast<size_t>(b * piece), static_cast<size_t>(piece)));
      }
      prefill.run(slots, each);
      check_finite(ctx_, prefill.logits(), name);
      const Timing time = cuda_time(ctx_, o_.repeats, [&] {
        for (int64_t i = 0; i < pieces; ++i) prefill.run_again();
      });
      const double rate = static_cast<double>(o_.batch * n) / time.median;
      const double flops = prompt_flops(model.layout().shape, o_.batch, n) / time.median;
      std::printf("%16s %6lld %6lld %5s %5s %11.3f %6.1f%% %11.0f %9.1f %8.1f%%\n", name.c_str(),
                  static_cast<long long>(o_.batch), static_cast<long long>(n), o_.dtype.c_str(),
                  o_.state.c_str(), 1e3 * time.median, 100 * time.spread, rate, 1e-12 * flops,
                  100 * flops / product_);
      nlohmann::ordered_json row = {{"model", name},
                                    {"batch", o_.batch},
                                    {"tokens", n},
                                    {"piece", piece},
                                    {"dtype", o_.dtype},
                                    {"state", o_.state},
                                    {"median_s", time.median},
                                    {"min_s", time.minimum},
                                    {"spread", time.spread},
                                    {"repeats", o_.repeats},
                                    {"tokens_per_s", rate},
                                    {"flop_per_s", flops},
                                    {"share_of_product", flops / product_},
                                    {"work_bytes", prefill.work_bytes()}};
      if (o_.stages) {
        std::printf("  ms of a piece, launched one by one:");
        for (const auto& [stage, s] : prefill.stages()) {
          std::printf(" %s %.3f;", stage.c_str(), 1e3 * s);
          row["stages_s"][stage] = s;
        }
        std::printf("\n");
      }
      std::fflush(stdout);
      doc_["rows"].push_back(row);
    }
  }

  /// The text in windows of the longest length, each from a fresh state.
  void loss(const std::string& name, const LoadedModel& loaded, DecodeModel& model) {
    const auto ids = loaded.need_tokenizer().encode(read_file(o_.text));
    RWKV_CHECK(ids.size() >= 2, IoError, "--text ", o_.text, ": fewer than two tokens");
    const auto window = static_cast<size_t>(*std::ranges::max_element(tokens_));
    DecodePrefill prefill(model, {.tokens = o_.piece, .losses = true});
    double nats = 0;
    int64_t count = 0;
    for (size_t at = 0; at + 1 < ids.size(); at += window) {
      model.reset(0);
      for (const float x :
           prefill.losses(0, std::span(ids).subspan(at, std::min(window + 1, ids.size() - at)))) {
        nats += static_cast<double>(x);
        ++count;
      }
    }
    RWKV_CHECK(std::isfinite(nats), NonFiniteError, name, ": the loss of ", o_.text,
               " is not finite");
    const double mean = nats / static_cast<double>(count);
    std::printf("%16s average loss %.6f nats over %lld tokens in windows of %zu\n", name.c_str(),
                mean, static_cast<long long>(count), window);
    doc_["losses"].push_back(
        {{"model", name}, {"loss", mean}, {"tokens", count}, {"window", window}});
  }

  const PrefillBenchOptions& o_;
  DType dtype_, state_;
  Context ctx_{Device::kCuda};
  std::vector<int64_t> tokens_;
  double copied_ = 0, product_ = 0;
  nlohmann::ordered_json doc_;
};

}  // namespace

int run_prefill(const PrefillBenchOptions& o) {
  check_outputs(o.json, "");
  return PrefillBench(o).run();
}

}  // namespace rwkv::bench
