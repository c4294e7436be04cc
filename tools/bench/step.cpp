#include "tools/bench/step.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/backend.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "kernels/cpu/eigen_reference.h"
#include "model/init.h"
#include "tools/bench/cuda_timing.h"
#include "tools/bench/report.h"
#include "trainer/gemm_choices.h"
#include "trainer/memory.h"
#include "trainer/train_step.h"

namespace rwkv::bench {
namespace {

constexpr double kSheetTflops = 989, kSheetTflopsF32 = 67;  // H100 and H200, dense
constexpr int kTracedSteps = 3;

TrainStepOptions step_options(const StepOptions& o) {
  const auto one_of = [](const char* flag, const std::string& value,
                         std::initializer_list<const char*> known) {
    std::string all;
    for (const char* k : known) {
      if (value == k) return;
      all += str(all.empty() ? "" : ", ", k);
    }
    throw ConfigError(str(flag, ": found '", value, "', expected one of ", all));
  };
  one_of("--device", o.device, {"cpu", "cuda"});
  one_of("--dtype", o.dtype, {"auto", "f32", "bf16"});
  one_of("--grad-checkpointing", o.grad_checkpointing, {"none", "block"});
  one_of("--gemm", o.gemm, {"measured", "heuristic"});
  TrainStepOptions t;
  t.device = o.device == "cuda" ? Device::kCuda : Device::kCpu;
  RWKV_CHECK(t.device == Device::kCuda || o.dtype != "bf16", ConfigError,
             "--dtype: found bf16 with --device cpu, expected f32");
  t.dtype = t.device == Device::kCuda && o.dtype != "f32" ? DType::kBF16 : DType::kF32;
  t.batch = o.batch;
  t.tokens = o.tokens;
  t.micro_batches = o.micro_batches;
  t.loss_chunk_tokens = o.loss_chunk_tokens;
  t.wkv = o.wkv;
  t.grad_checkpointing =
      o.grad_checkpointing == "block" ? GradCheckpointing::kBlock : GradCheckpointing::kNone;
  t.optimizer = {.weight_decay = 0.1, .clip = 1.0};
  t.measure_gemms = o.gemm == "measured";
  t.launch_graphs = o.launch_graphs;
  t.lanes = o.lanes;
  return t;
}

/// What the utilisation counts: 6 per token and parameter outside of the embedding, and per token,
/// channel and layer what the plain recurrence does forward and backward: RWKV-7 27 head_size (the
/// formula that published figures use), RWKV-4 12 + 35 (spec rwkv4 7).
double published_flops(const Model& model, double tokens) {
  const ModelConfig& c = model.config();
  double inner = 0;
  for (const ParamSpec& p : model.params().specs())
    if (p.name != "emb.weight" && p.name != "head.weight")
      inner += static_cast<double>(p.spec.numel());
  const auto d = static_cast<double>(c.n_embd);
  const double wkv = c.architecture == "rwkv4" ? 47 : 27 * static_cast<double>(c.head_size);
  return tokens * (6 * inner + 6 * static_cast<double>(c.vocab_size) * d +
                   wkv * d * static_cast<double>(c.n_layer));
}

void fill(std::span<int32_t> ids, const Rng& rng, uint64_t& counter, int64_t vocab) {
  for (int32_t& id : ids)
    id = static_cast<int32_t>(rng.below(counter++, static_cast<uint64_t>(vocab)));
}

double median(std::vector<double> v) {
  return summarize(std::move(v)).median;
}

}  // namespace

int run_step(const StepOptions& o) {
  if (o.threads > 0) set_num_threads(o.threads);
  ModelConfig config;
  RWKV_CHECK(o.architecture == "rwkv7" || o.architecture == "rwkv4", ConfigError, "--arch: found '",
             o.architecture, "', expected rwkv7 or rwkv4");
  const bool v4 = o.architecture == "rwkv4";
  const int64_t vocab = o.vocab > 0 ? o.vocab : v4 ? 50277 : 50304;
  config.architecture = o.architecture;
  config.n_layer = o.layers;
  config.n_embd = o.width;
  config.vocab_size = vocab;
  config.head_size = v4 ? 0 : o.head_size;
  const TrainStepOptions options = step_options(o);
  const bool cuda = options.device == Device::kCuda;
  double copy_rate = 0, product_rate = 0;  // what this GPU gives, with a context of its own
  if (cuda) {
    Context ctx(Device::kCuda);
    copy_rate = cuda_copy_bandwidth(ctx);
    product_rate = cuda_gemm_flops(ctx, options.dtype, 8192, 8192, 8192);
  }
  TrainStep step(config, options);
  require_memory(step, 0);
  step.allocate();
  const Model& model = step.model();
  // Cheap random values instead of the initial ones: nothing is zero, so that no work is saved.
  for (size_t i = 0; i < model.params().size(); ++i) {
    const TensorView v = step.values()[static_cast<ParamId>(i)];
    init_uniform({v.f32(), static_cast<size_t>(v.numel())}, -0.05, 0.05, 1,
                 model.params().specs()[i].name);
  }
  step.upload();
  const double before_warm_up = now_seconds();
  prepare_step(step, "", [](const std::string& text) { std::printf("%s\n", text.c_str()); });
  const double warm_up = now_seconds() - before_warm_up;

  const Rng rng(1, hash_name("bench tokens"));
  uint64_t counter = 0;
  const auto one_step = [&] {
    for (int64_t m = 0; m < o.micro_batches; ++m) {
      fill(step.tokens(), rng, counter, vocab);
      fill(step.targets(), rng, counter, vocab);
      step.accumulate(m);
    }
    const TrainStep::Result r = step.finish(1e-6);
    RWKV_CHECK(r.finite, NonFiniteError, "the step's loss is ", r.loss, ", its gradient norm ",
               r.grad_norm);
  };
  const double eigen_before = cuda ? 0 : cpu::eigen_gemm_gflops(1024, num_threads(), 9);
  std::vector<double> total;
  for (int i = -2; i < o.repeats; ++i) {
    const double start = now_seconds();
    one_step();
    if (i >= 0) total.push_back(now_seconds() - start);  // the first steps touch fresh memory
  }
  const uint64_t syncs_before = step.context().synchronizations();
  step.context().tracer().enable(true);
  const double trace_start = now_seconds();
  for (int i = 0; i < kTracedSteps; ++i) one_step();
  const double traced = (now_seconds() - trace_start) / kTracedSteps;
  const auto& traced_rows = step.context().tracer().rows();
  const double eigen =
      cuda ? 0 : std::max(eigen_before, cpu::eigen_gemm_gflops(1024, num_threads(), 9));

  Environment env = environment();
  std::printf("%s\n", to_string(env).c_str());
  if (cuda) std::printf("%s\n", backend::cuda_device_text().c_str());
  const double seconds = median(total);
  const auto gemm = traced_rows.find("gemm");
  RWKV_ASSERT(gemm != traced_rows.end(), "no product was traced");
  const double gemm_rate = gemm->second.flops / gemm->second.seconds * 1e-9;
  const double gemm_share = gemm->second.seconds / (traced * kTracedSteps);
  const auto tokens = static_cast<double>(o.batch * o.tokens * o.micro_batches);
  const double sheet = options.dtype == DType::kF32 ? kSheetTflopsF32 : kSheetTflops;
  const double peak = o.peak_tflops > 0 ? o.peak_tflops : cuda ? sheet : eigen * 1e-3;
  const double flops = published_flops(model, tokens);
  const double mfu = flops / seconds / (peak * 1e12);
  std::printf(
      "%s L%lld-D%lld V%lld, batch %lld x %lld, context %lld, %s on %s, %d threads, %s, "
      "recomputation "
      "%s, products %s, launch graphs %s, %d lanes\n",
      o.architecture.c_str(), static_cast<long long>(o.layers), static_cast<long long>(o.width),
      static_cast<long long>(vocab), static_cast<long long>(o.batch),
      static_cast<long long>(o.micro_batches), static_cast<long long>(o.tokens),
      std::string(dtype_name(options.dtype)).c_str(), o.device.c_str(), num_threads(),
      step.wkv_name().c_str(), o.grad_checkpointing.c_str(), cuda ? o.gemm.c_str() : "by Eigen",
      cuda && o.launch_graphs ? "on" : "off", step.options().lanes);
  std::printf("step %.3f ms (median of %zu, minimum %.3f; warm-up before the first %.2f s)\n",
              seconds * 1e3, total.size(), *std::ranges::min_element(total) * 1e3, warm_up);
  std::printf(
      "%.0f tokens/s, %.1f GFLOP per step (6 x parameters outside the embedding + %s D L per "
      "token), model-flops utilisation %.1f %% of %.4g TFLOP/s\n",
      tokens / seconds, flops * 1e-9, v4 ? "47" : "27 N", 100 * mfu, peak);
  if (cuda)
    std::printf("measured here: copy %.0f GB/s (read + write), product of 8192^3 %.0f TFLOP/s\n",
                copy_rate * 1e-9, product_rate * 1e-12);
  std::printf("op by op: %.3f ms per step; matrix products %.1f %% of it at %.1f GFLOP/s",
              traced * 1e3, 100 * gemm_share, gemm_rate);
  if (!cuda) std::printf(" = %.1f %% of Eigen's own 1024^3 product", 100 * gemm_rate / eigen);
  std::printf("\n\n%-32s %10s %8s %8s\n", "op", "ms/step", "share", "calls");
  std::vector<std::pair<std::string, Tracer::Row>> rows(traced_rows.begin(), traced_rows.end());
  std::ranges::sort(rows, std::ranges::greater{}, [](const auto& r) { return r.second.seconds; });
  nlohmann::ordered_json ops;
  for (const auto& [name, row] : rows) {
    const std::string label = name == "gemm" ? "(matrix products inside)" : name;
    const double ms = row.seconds / kTracedSteps * 1e3;
    std::printf("%-32s %10.3f %7.1f%% %8lld\n", label.c_str(), ms, 1e-1 * ms / traced,
                static_cast<long long>(row.calls / kTracedSteps));
    ops[name] = {{"ms", ms}, {"calls", row.calls / kTracedSteps}};
  }
  std::printf("\nmemory:\n");
  nlohmann::ordered_json memory;
  for (const MemoryItem& item : step.memory()) {
    std::printf("  %-32s %12s\n", item.name.c_str(), format_bytes(item.bytes).c_str());
    memory[item.name] = item.bytes;
  }
  size_t in_use = 0;
  if (cuda) {
    const backend::DeviceMemory m = backend::cuda_memory();
    in_use = m.total - m.free;
    std::printf("  %-32s %12s\n", "in use on the device", format_bytes(in_use).c_str());
  }
  if (o.json.empty()) return 0;
  const nlohmann::ordered_json j = {
      {"bench", "step"},
      {"date", today()},
      {"commit", env.commit},
      {"kernel_hash", env.kernel_hash},
      {"device", cuda ? backend::cuda_device_text() : env.cpu},
      {"dtype", dtype_name(options.dtype)},
      {"architecture", o.architecture},
      {"layers", o.layers},
      {"width", o.width},
      {"vocab", vocab},
      {"batch", o.batch},
      {"micro_batches", o.micro_batches},
      {"tokens", o.tokens},
      {"threads", num_threads()},
      {"wkv", step.wkv_name()},
      {"grad_checkpointing", o.grad_checkpointing},
      {"gemm", o.gemm},
      {"launch_graphs", cuda && o.launch_graphs},
      {"lanes", step.options().lanes},
      {"step_ms", seconds * 1e3},
      {"step_ms_minimum", *std::ranges::min_element(total) * 1e3},
      {"repeats", total.size()},
      {"tokens_per_s", tokens / seconds},
      {"flops", flops},
      {"peak_tflops", peak},
      {"mfu", mfu},
      {"copy_bytes_per_second", copy_rate},
      {"gemm_flop_per_second", product_rate},
      {"warm_up_s", warm_up},
      {"traced_step_ms", traced * 1e3},
      {"gemm_share", gemm_share},
      {"gemm_gflops", gemm_rate},
      {"eigen_1024_gflops", eigen},
      {"synchronizations_per_step",
       static_cast<double>(step.context().synchronizations() - syncs_before) / kTracedSteps},
      {"memory_bytes", memory},
      {"device_memory_in_use_bytes", in_use},
      {"ops", ops}};
  write_file(o.json, j.dump(2) + "\n");
  return 0;
}

}  // namespace rwkv::bench
