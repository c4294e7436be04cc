#include "tools/bench/cpu_inference.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "inference/engine.h"
#include "kernels/core/arena.h"
#include "kernels/core/few_rows.h"
#include "kernels/core/parallel.h"
#include "kernels/core/trace.h"
#include "model/graph/plan.h"
#include "model/init.h"
#include "tools/bench/report.h"
#include "tools/bench/wkv_fp16.h"

namespace rwkv::bench {
namespace {

/// Bytes per second that all threads together read from memory in one long product: the best of
/// some. (A loop without prefetching gets less.)
double read_bandwidth() {
  constexpr int64_t kRows = 65536, kCols = 1024;  // 256 MiB
  const Arena arena(Device::kCpu, kRows * kCols * sizeof(float), "read bandwidth");
  const TensorView matrix = arena.at(0, {kRows, kCols});
  std::fill_n(matrix.f32(), matrix.numel(), 1.0F);
  const std::vector<float> ones(kCols, 1.0F);
  std::vector<float> sums(kRows);
  const FewRowsCall call{.n = kRows,
                         .k = kCols,
                         .a = ones.data(),
                         .lda = kCols,
                         .b = arena.data(),
                         .row_bytes = kCols * sizeof(float),
                         .c = sums.data(),
                         .ldc = kRows};
  double best = 0;
  for (int pass = 0; pass < 10; ++pass) {
    const double start = now_seconds();
    few_rows(call, true);
    best = std::max(best, static_cast<double>(matrix.bytes()) / (now_seconds() - start));
  }
  return best;
}

/// Uniform values, so that about half of the channel mix's activations are zero; or none are, with
/// inputs of ones and positive weights before the squared ReLU.
void fill(const Model& model, const ParamStore& weights, bool no_zeros) {
  for (size_t i = 0; i < model.params().size(); ++i) {
    const std::string& name = model.params().specs()[i].name;
    const TensorView v = weights.views()[i];
    const std::span<float> x(v.f32(), static_cast<size_t>(v.numel()));
    init_uniform(x, -0.05, 0.05, 1, name);
    if (!no_zeros) continue;
    if (name.ends_with("ln2.weight") || name.ends_with("ffn.x_k")) std::ranges::fill(x, 0.0F);
    if (name.ends_with("ln2.bias")) std::ranges::fill(x, 1.0F);
    if (name.ends_with("ffn.key.weight"))
      for (float& value : x) value = std::fabs(value);
  }
}

/// Share of zeros among the inputs of the channel mixes' second matrices, over all layers and some
/// tokens.
double zero_share(const Model& model, const ParamStore& weights) {
  constexpr int64_t kTokens = 32;
  Context ctx(Device::kCpu);
  double zeros = 0, all = 0;
  for (int64_t l = 0; l < model.config().n_layer; ++l) {
    const Graph graph =
        model.build({.tokens = kTokens, .mode = GraphOptions::Mode::kLogits, .expose_layer = l});
    Plan plan = Plan::build(graph, {.training = false});
    plan.bind(ctx, weights.views(), {});
    const TensorView tokens = plan.input("tokens");
    for (int32_t t = 0; t < kTokens; ++t)
      tokens.as<int32_t>()[t] = static_cast<int32_t>(t * 61 % model.config().vocab_size);
    plan.forward(ctx);
    const TensorView hidden = plan.output("layer/hidden");
    for (int64_t i = 0; i < hidden.numel(); ++i) zeros += hidden.f32()[i] == 0 ? 1 : 0;
    all += static_cast<double>(hidden.numel());
  }
  return zeros / all;
}

/// Bytes of weights that a token needs: every tensor but the embedding, of which it needs a row,
/// and but the rows for zeros.
double weight_bytes(const Model& model, DType type, double zeros) {
  double bytes = static_cast<double>(model.config().n_embd) * sizeof(float);
  for (const GraphParam& p : model.params().packed_graph_params(type))
    if (p.name != "emb.weight")
      bytes += static_cast<double>(p.spec.bytes()) * (p.transposed ? 1 - zeros : 1);
  return bytes;
}

double state_bytes(const Model& model) {
  double bytes = 0;
  for (const Model::StateSpec& s : model.state_specs(1, DType::kF32))
    bytes += static_cast<double>(s.spec.bytes());
  return bytes;
}

/// Operations of a prefill whose logits are those of the last token: of the matrices only.
double prefill_flops(const Model& model, int64_t tokens) {
  double flops = 0;
  for (const ParamSpec& p : model.params().specs())
    if (p.matrix && p.bucket != "emb")
      flops += 2.0 * static_cast<double>(p.spec.numel()) *
               (p.bucket == "head" ? 1.0 : static_cast<double>(tokens));
  return flops;
}

template <class Work>
Timing timed(int repeats, const Work& work) {
  work();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const double start = now_seconds();
    work();
    seconds.push_back(now_seconds() - start);
  }
  return summarize(seconds);
}

}  // namespace

void add_cpu_inference_flags(CLI::App* app, CpuInferenceOptions& o) {
  app->add_option("--weights", o.weights, "f32, bf16 or int8, repeatable (default: all)")
      ->check(CLI::IsMember({"f32", "bf16", "int8"}));
  app->add_option("--layers", o.layers, "layers")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--width", o.width, "channels")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--vocab", o.vocab, "vocabulary")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--tokens", o.tokens, "tokens decoded in a row per timed run")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app->add_option("--prompt", o.prompt, "tokens of prefill; 0: none")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app->add_flag("--no-zeros", o.no_zeros,
                "weights that give no zero after the squared ReLU: nothing is skipped");
}

int run_cpu_inference(const CpuInferenceOptions& o) {
  if (o.threads > 0) set_num_threads(o.threads);
  ModelConfig config;
  config.n_layer = o.layers;
  config.n_embd = o.width;
  config.vocab_size = o.vocab;
  config.head_size = 64;
  config.finish();
  const std::unique_ptr<Model> model = make_model(config);
  ParamStore weights(Device::kCpu, model->params(), "weights");
  fill(*model, weights, o.no_zeros);
  const double zeros = zero_share(*model, weights), bandwidth = read_bandwidth();
  std::printf(
      "%s\nread bandwidth %.1f GB/s; %lld layers of %lld; zeros after the squared ReLU "
      "%.1f%%; medians of %d\n",
      to_string(environment()).c_str(), 1e-9 * bandwidth, static_cast<long long>(o.layers),
      static_cast<long long>(o.width), 100 * zeros, o.repeats);
  auto doc = nlohmann::ordered_json::parse(record_head("cpu", Device::kCpu));
  doc["threads"] = num_threads();
  doc["layers"] = o.layers;
  doc["width"] = o.width;
  doc["vocab"] = o.vocab;
  doc["zero_share"] = zeros;
  doc["read_bytes_per_second"] = bandwidth;
  doc["rows"] = nlohmann::ordered_json::array();
  std::printf("%7s %8s %7s %10s %8s %7s %7s %9s\n", "weights", "what", "tokens", "tokens/s",
              "spread", "GB/s", "% read", "GFLOP/s");
  const auto names =
      o.weights.empty() ? std::vector<std::string>{"f32", "bf16", "int8"} : o.weights;
  for (const std::string& name : names) {
    const DType type = name == "bf16" ? DType::kBF16 : name == "int8" ? DType::kI8 : DType::kF32;
    Engine engine(*model, weights, {.weights = type, .fixed_weights = true});
    RnnState state = engine.new_state();
    const auto token = [&](int64_t i) { return static_cast<int32_t>(i * 61 % o.vocab); };
    const auto row = [&](const char* what, int64_t tokens, const Timing& t, double bytes,
                         double flops) {
      const double rate = static_cast<double>(tokens) / t.median;
      std::printf("%7s %8s %7lld %10.1f %7.1f%% ", name.c_str(), what,
                  static_cast<long long>(tokens), rate, 100 * t.spread);
      nlohmann::ordered_json r = {{"weights", name},      {"what", what},
                                  {"tokens", tokens},     {"median_s", t.median},
                                  {"min_s", t.minimum},   {"spread", t.spread},
                                  {"repeats", o.repeats}, {"tokens_per_s", rate}};
      if (bytes > 0) {
        std::printf("%7.1f %6.1f%%\n", 1e-9 * bytes * rate, 100 * bytes * rate / bandwidth);
        r["bytes_per_token"] = bytes;
        r["share_of_read"] = bytes * rate / bandwidth;
      } else {
        std::printf("%7s %7s %9.1f\n", "", "", 1e-9 * flops / t.median);
        r["flops_per_s"] = flops / t.median;
      }
      std::fflush(stdout);
      doc["rows"].push_back(r);
    };
    TensorView logits;
    const Timing decode = timed(o.repeats, [&] {
      for (int i = 0; i < o.tokens; ++i) {
        const int32_t id = token(i);
        logits = engine.decode(state, {&id, 1});
      }
    });
    for (int64_t i = 0; i < logits.numel(); ++i)
      RWKV_CHECK(std::isfinite(logits.f32()[i]), Error, "logits of the benchmark are not finite");
    row("decode", o.tokens, decode, weight_bytes(*model, type, zeros) + state_bytes(*model), 0);
    if (o.prompt == 0) continue;
    std::vector<int32_t> prompt;
    for (int64_t i = 0; i < o.prompt; ++i) prompt.push_back(token(i));
    const Timing prefill = timed(o.repeats, [&] { engine.prefill(state, prompt); });
    row("prefill", o.prompt, prefill, 0, prefill_flops(*model, o.prompt));
  }
  if (!o.json.empty()) write_file(o.json, record_text(doc.dump()));
  return 0;
}

}  // namespace rwkv::bench
