#include "trainer/dry_run.h"

#include <algorithm>

#include "kernels/core/arena.h"
#include "kernels/core/backend.h"
#include "kernels/core/parallel.h"
#include "trainer/memory.h"
#include "trainer/metrics.h"
#include "trainer/recompute.h"
#include "trainer/trainer.h"

namespace rwkv {
namespace {

std::string thousands(int64_t n) {
  std::string s = std::to_string(n);
  for (auto at = static_cast<int64_t>(s.size()) - 3; at > 0; at -= 3)
    s.insert(static_cast<size_t>(at), 1, ',');
  return s;
}

/// When the run ends, as far as the config alone says.
std::string length_text(const TrainConfig& c) {
  if (c.train.steps == 0 && c.train.exit_tokens == 0 && c.train.epochs > 0)
    return str(c.train.epochs, " epochs of the data");
  const int64_t steps = c.total_steps(0);
  return str(thousands(steps), " (",
             format_count(static_cast<double>(steps) * static_cast<double>(c.tokens_per_step())),
             " tokens)");
}

bool gpu_answers() {
  try {
    return backend::cuda_memory().total > 0;
  } catch (const DeviceError&) {
    return false;
  }
}

}  // namespace

std::string dry_run_report(const TrainConfig& config, Device device) {
  const TrainConfig c = with_recomputation(config, device, nullptr);
  const TrainStep step(c.model, step_options(c, device));
  const ParameterCount count = count_parameters(c.model);
  const Plan& plan = step.plan();
  std::string out;
  const auto row = [&](const std::string& name, const std::string& value) {
    std::string label = name;
    label.resize(std::max<size_t>(label.size() + 2, 32), ' ');
    out += label + value + "\n";
  };
  row("config", c.name);
  row("model",
      str(c.model.architecture, " L", c.model.n_layer, " D", c.model.n_embd, " V",
          c.model.vocab_size, c.model.head_size > 0 ? str(", head size ", c.model.head_size) : ""));
  row("parameters", thousands(count.used));
  row("  with unused tensors",
      str(thousands(count.total), count.used < count.total ? " (layer 0's v0, v1, v2)" : ""));
  row("tokens per step", str(thousands(c.tokens_per_step()), " = ", c.train.micro_batches,
                             " micro-batches x ", c.train.batch, " sequences x ", c.train.context,
                             c.ranks > 1 ? str(" x ", c.ranks, " ranks") : ""));
  row("steps", length_text(c));
  row("operations per step", format_count(step.flops_per_step()) + "FLOP");
  row("wkv variant", step.wkv_name());
  if (c.train.grad_checkpointing == "block")
    row("computed twice",
        str(c.train.recompute_blocks > 0 ? std::min(c.train.recompute_blocks, c.model.n_layer)
                                         : c.model.n_layer,
            " of ", c.model.n_layer, " blocks",
            config.train.grad_checkpointing == "auto" ? ", as few as fit" : ""));
  const bool cuda = device == Device::kCuda;
  row("device", str(cuda ? "cuda" : "cpu", ", ",
                    c.kernels.dtype != "auto" ? c.kernels.dtype
                    : cuda                    ? "bf16"
                                              : "f32"));
  row("threads", std::to_string(num_threads()));
  const auto items = step.memory();
  row(c.ranks > 1 ? "memory of each rank" : "memory", format_bytes(total_bytes(items)));
  for (const auto& item : items) row("  " + item.name, format_bytes(item.bytes));
  if (cuda) {
    const auto host = step.host_memory();
    row(c.ranks > 1 ? "memory of rank 0 on the host" : "memory on the host",
        format_bytes(total_bytes(host)));
    for (const auto& item : host) row("  " + item.name, format_bytes(item.bytes));
  }

  size_t by_kind[4] = {0, 0, 0, 0};
  for (const PlanStep& s : plan.steps()) ++by_kind[static_cast<size_t>(s.kind)];
  row("plan", str(plan.steps().size(), " steps: ", by_kind[0], " forward, ", by_kind[1],
                  " recomputed, ", by_kind[2], " zero, ", by_kind[3], " backward; ",
                  plan.buffers().size(), " buffers of ", format_bytes(plan.unpacked_bytes()),
                  " packed into ", format_bytes(plan.activation_bytes())));
  const size_t limit = memory_limit(device, c.limits.memory_mib);
  if (limit == 0)
    row("fits", device == Device::kCuda
                    ? "unknown: there is no GPU here to ask"
                    : "unknown: this system does not say how much memory is available");
  else if (device == Device::kCuda && !gpu_answers())
    row("fits", str(total_bytes(items) <= limit
                        ? "within limits.memory_mib"
                        : "NOT within limits.memory_mib." + smaller_batch_advice(step, limit),
                    "; there is no GPU here to ask"));
  else if (total_bytes(items) <= limit)
    row("fits", str("yes: ", format_bytes(limit), " are available"));
  else
    row("fits",
        str("NO: only ", format_bytes(limit), " are available; largest: ", items[0].name, ", ",
            items[1].name, ", ", items[2].name, ".", smaller_batch_advice(step, limit)));
  return out;
}

std::string dump_plan(const TrainConfig& config, Device device) {
  const TrainConfig c = with_recomputation(config, device, nullptr);
  return TrainStep(c.model, step_options(c, device)).plan().dump();
}

}  // namespace rwkv
