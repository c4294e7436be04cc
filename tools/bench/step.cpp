#include "tools/bench/step.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "kernels/cpu/eigen_reference.h"
#include "model/graph/plan.h"
#include "model/init.h"
#include "model/rwkv.h"
#include "tools/bench/report.h"
#include "trainer/optimizer.h"

namespace rwkv::bench {
namespace {

double median(std::vector<double> v) {
  return summarize(std::move(v)).median;
}

}  // namespace

int run_step(const StepOptions& o) {
  if (o.threads > 0) set_num_threads(o.threads);
  ModelConfig config;
  config.n_layer = o.layers;
  config.n_embd = o.width;
  config.vocab_size = o.vocab;
  config.head_size = o.head_size;
  const auto model = make_model(config);
  const GraphOptions graph_options{.batch = o.batch, .tokens = o.tokens, .wkv = o.wkv};
  const Graph graph = model->build(graph_options);
  RWKV_CHECK(o.grad_checkpointing == "none" || o.grad_checkpointing == "block", ConfigError,
             "--grad-checkpointing: found '", o.grad_checkpointing, "', expected none or block");
  Plan plan = Plan::build(
      graph, {.grad_checkpointing = o.grad_checkpointing == "block" ? GradCheckpointing::kBlock
                                                                    : GradCheckpointing::kNone});
  Context ctx;
  ParamStore values(Device::kCpu, model->params(), "parameters"),
      grads(Device::kCpu, model->params(), "gradients");
  // Cheap random values instead of the initial ones: nothing is zero, so that no work is saved.
  for (size_t i = 0; i < model->params().size(); ++i) {
    const TensorView v = values[static_cast<ParamId>(i)];
    init_uniform({v.f32(), static_cast<size_t>(v.numel())}, -0.05, 0.05, 1,
                 model->params().specs()[i].name);
  }
  plan.bind(ctx, values.views(), grads.views());
  AdamW optimizer(Device::kCpu, model->params(), {.weight_decay = 0.1}, plan.reached_params());
  const Rng rng(1, hash_name("bench tokens"));
  for (const char* name : {"tokens", "targets"}) {
    const TensorView t = plan.input(name);
    for (int64_t i = 0; i < t.numel(); ++i)
      t.as<int32_t>()[i] =
          static_cast<int32_t>(rng.below(static_cast<uint64_t>(i), static_cast<uint64_t>(o.vocab)));
  }

  const double eigen_before = cpu::eigen_gemm_gflops(1024, num_threads(), 9);
  std::vector<double> total, forward, backward, update;
  for (int i = -1; i < o.repeats; ++i) {
    if (i == 0) ctx.tracer().enable(true);
    const double t0 = now_seconds();
    plan.forward(ctx);
    const double t1 = now_seconds();
    plan.backward(ctx, 1, true);
    const double t2 = now_seconds();
    {
      const TraceScope trace(ctx.tracer(), "clip and AdamW");
      optimizer.step(values, grads, 1e-6, optimizer.grad_norm(grads));
    }
    const double t3 = now_seconds();
    if (i < 0) continue;  // the first step touches fresh memory
    forward.push_back(t1 - t0);
    backward.push_back(t2 - t1);
    update.push_back(t3 - t2);
    total.push_back(t3 - t0);
  }
  const double eigen = std::max(eigen_before, cpu::eigen_gemm_gflops(1024, num_threads(), 9));

  const Environment env = environment();
  std::printf("%s\n", to_string(env).c_str());
  const double step = median(total);
  double sum = 0;
  for (const double t : total) sum += t;
  const auto gemm = ctx.tracer().rows().find("gemm");
  RWKV_ASSERT(gemm != ctx.tracer().rows().end(), "no product was traced");
  const double gemm_rate = gemm->second.flops / gemm->second.seconds * 1e-9;
  const double gemm_share = gemm->second.seconds / sum;
  const auto tokens = static_cast<double>(o.batch * o.tokens);
  const double mfu = plan.model_flops() / step / (eigen * 1e9);

  std::printf(
      "L%lld-D%lld V%lld, batch %lld, context %lld, f32, %d threads, %s, recomputation %s\n",
      static_cast<long long>(o.layers), static_cast<long long>(o.width),
      static_cast<long long>(o.vocab), static_cast<long long>(o.batch),
      static_cast<long long>(o.tokens), num_threads(), model->wkv_name(graph_options).c_str(),
      o.grad_checkpointing.c_str());
  std::printf(
      "step %.1f ms (median of %zu, minimum %.1f): forward %.1f, backward %.1f, "
      "clip and AdamW %.1f\n",
      step * 1e3, total.size(), *std::ranges::min_element(total) * 1e3, median(forward) * 1e3,
      median(backward) * 1e3, median(update) * 1e3);
  std::printf(
      "%.1f tokens/s, %.1f GFLOP per step, model-flops utilisation %.1f %% of Eigen's rate\n",
      tokens / step, plan.model_flops() * 1e-9, 100 * mfu);
  std::printf(
      "matrix products: %.1f %% of the step at %.1f GFLOP/s = %.1f %% of Eigen's own "
      "1024^3 product (%.1f GFLOP/s)\n\n",
      100 * gemm_share, gemm_rate, 100 * gemm_rate / eigen, eigen);
  std::printf("%-24s %10s %8s %8s\n", "op (forward + backward)", "ms/step", "share", "calls");
  std::vector<std::pair<std::string, Tracer::Row>> rows(ctx.tracer().rows().begin(),
                                                        ctx.tracer().rows().end());
  std::ranges::sort(rows, std::ranges::greater{}, [](const auto& r) { return r.second.seconds; });
  nlohmann::ordered_json ops;
  for (const auto& [name, row] : rows) {
    const std::string label = name == "gemm" ? "(matrix products inside)" : name;
    const double ms = row.seconds / o.repeats * 1e3;
    std::printf("%-24s %10.2f %7.1f%% %8lld\n", label.c_str(), ms, 100 * row.seconds / sum,
                static_cast<long long>(row.calls / o.repeats));
    ops[name] = {{"ms", ms}, {"share", row.seconds / sum}};
  }
  const auto param_bytes = values.flat().size_bytes();
  std::printf(
      "\nmemory: parameters %s, gradients %s, AdamW moments %s, activations %s, "
      "workspace %s\n",
      format_bytes(param_bytes).c_str(), format_bytes(param_bytes).c_str(),
      format_bytes(2 * param_bytes).c_str(), format_bytes(plan.activation_bytes()).c_str(),
      format_bytes(plan.workspace_bytes()).c_str());
  if (o.json.empty()) return 0;
  const nlohmann::ordered_json j = {{"bench", "step"},
                                    {"layers", o.layers},
                                    {"width", o.width},
                                    {"vocab", o.vocab},
                                    {"batch", o.batch},
                                    {"tokens", o.tokens},
                                    {"threads", num_threads()},
                                    {"wkv", model->wkv_name(graph_options)},
                                    {"grad_checkpointing", o.grad_checkpointing},
                                    {"step_ms", step * 1e3},
                                    {"forward_ms", median(forward) * 1e3},
                                    {"backward_ms", median(backward) * 1e3},
                                    {"update_ms", median(update) * 1e3},
                                    {"tokens_per_s", tokens / step},
                                    {"gemm_share", gemm_share},
                                    {"gemm_gflops", gemm_rate},
                                    {"eigen_1024_gflops", eigen},
                                    {"gemm_of_eigen", gemm_rate / eigen},
                                    {"activation_bytes", plan.activation_bytes()},
                                    {"ops", ops}};
  write_file(o.json, j.dump(2) + "\n");
  return 0;
}

}  // namespace rwkv::bench
