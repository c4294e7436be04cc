#include "tools/bench/scale.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "kernels/core/backend.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "kernels/core/stream_event.h"
#include "kernels/core/trace.h"
#include "model/init.h"
#include "tools/bench/report.h"
#include "trainer/comm/launch.h"
#include "trainer/gemm_choices.h"
#include "trainer/memory.h"
#include "trainer/train_step.h"

namespace rwkv::bench {
namespace {

struct Shape {
  int64_t tokens = 0, batch = 0;
};

Shape parse_shape(const std::string& text) {
  Shape s;
  char rest = 0;
  long long tokens = 0, batch = 0;
  RWKV_CHECK(std::sscanf(text.c_str(), "%lldx%lld%c", &tokens, &batch, &rest) == 2 && tokens > 0 &&
                 batch > 0,
             ConfigError, "--shape: found '", text, "', expected TOKENSxBATCH, such as 4096x8");
  s.tokens = tokens;
  s.batch = batch;
  return s;
}

TrainStepOptions step_options(const ScaleOptions& o, const Shape& shape) {
  TrainStepOptions t;
  t.device = o.device == "cuda" ? Device::kCuda : Device::kCpu;
  t.dtype = t.device == Device::kCuda && o.dtype != "f32" ? DType::kBF16 : DType::kF32;
  t.batch = shape.batch;
  t.tokens = shape.tokens;
  t.grad_checkpointing =
      o.grad_checkpointing == "block" ? GradCheckpointing::kBlock : GradCheckpointing::kNone;
  t.optimizer = {.weight_decay = 0.1, .clip = 1.0};
  t.overlap = o.overlap;
  t.exchange = o.exchange == "bf16" ? DType::kBF16 : DType::kF32;
  return t;
}

ModelConfig model_config(const ScaleOptions& o) {
  ModelConfig c;
  c.n_layer = o.layers;
  c.n_embd = o.width;
  c.vocab_size = o.vocab;
  c.head_size = o.head_size;
  return c;
}

/// Waits for the collectives, too.
void finish(Context& ctx, const Communicator& comm) {
  if (comm.stream() == nullptr) return;
  StreamEvent done;
  done.record_on(comm.stream());
  done.wait(ctx);
  ctx.synchronize("end of the collectives");
}

/// Median seconds of a step. `comm` null: this rank alone.
Timing time_steps(const ScaleOptions& o, const Shape& shape, Communicator* comm, int zero,
                  std::string& algorithms) {
  TrainStepOptions options = step_options(o, shape);
  options.comm = comm;
  options.zero = static_cast<ZeroStage>(zero);
  TrainStep step(model_config(o), options);
  HostGroup* group = comm == nullptr ? nullptr : &comm->group();
  agree(group, [&] {
    require_memory(step, 0);
    step.allocate();
  });
  if (comm == nullptr || comm->rank() == 0)
    for (size_t i = 0; i < step.model().params().size(); ++i) {
      const TensorView v = step.values()[static_cast<ParamId>(i)];
      init_uniform({v.f32(), static_cast<size_t>(v.numel())}, -0.05, 0.05, 1,
                   step.model().params().specs()[i].name);
    }
  step.upload();
  const auto quiet = [](const std::string&) {};
  agree(group, [&] {
    if (comm == nullptr || comm->rank() == 0) algorithms = prepare_step(step, algorithms, quiet);
  });
  if (comm != nullptr) {
    algorithms = group->broadcast(algorithms);
    agree(group, [&] {
      if (comm->rank() != 0) prepare_step(step, algorithms, quiet);
    });
  }
  const Rng rng(1, hash_name("bench tokens"));
  uint64_t counter = comm == nullptr ? 0 : static_cast<uint64_t>(comm->rank()) << 32;
  const auto fill = [&](std::span<int32_t> ids) {
    for (int32_t& id : ids)
      id = static_cast<int32_t>(rng.below(counter++, static_cast<uint64_t>(o.vocab)));
  };
  std::vector<double> seconds;
  abort_on_error(group, [&] {
    for (int i = -3; i < o.repeats; ++i) {
      const double start = now_seconds();
      fill(step.tokens());
      fill(step.targets());
      step.accumulate(0);
      const TrainStep::Result r = step.finish(1e-6);
      RWKV_CHECK(r.finite, NonFiniteError, "the step's loss is ", r.loss, ", its gradient norm ",
                 r.grad_norm);
      if (i >= 0) seconds.push_back(now_seconds() - start);
    }
  });
  return summarize(std::move(seconds));
}

/// What the exchanges of one step take by themselves, and what a large all-reduce reaches.
struct Exchanges {
  double seconds = 0, bytes = 0;     ///< bytes: that cross each rank's link
  double peak_bytes_per_second = 0;  ///< bus bandwidth of the all-reduce
};

Exchanges time_exchanges(const ScaleOptions& o, Communicator& comm) {
  const auto model = make_model(model_config(o));
  const ShardLayout layout(model->params(), comm.size());
  const TrainStepOptions t = step_options(o, {1, 1});
  Context ctx(t.device);
  const Arena grads(t.device, static_cast<size_t>(layout.elements()) * sizeof(float), "gradients");
  const DType back = t.dtype, there = t.exchange;
  const auto at = [&](const ShardLayout::Segment& s, DType type) {
    return grads.data() + static_cast<size_t>(s.offset) * dtype_bytes(type);
  };
  const auto part = [&](std::byte* p, const ShardLayout::Segment& s, DType type) {
    return p + static_cast<size_t>(comm.rank() * s.shard) * dtype_bytes(type);
  };
  const auto once = [&] {
    for (const ShardLayout::Segment& s : layout.segments())
      comm.reduce_scatter(at(s, there), part(at(s, there), s, there), s.shard, there);
    for (const ShardLayout::Segment& s : layout.segments())
      comm.all_gather(part(at(s, back), s, back), at(s, back), s.shard, back);
  };
  const auto time = [&](const std::function<void()>& work) {
    constexpr int kRuns = 5;
    work();
    finish(ctx, comm);
    comm.group().barrier();
    const double start = now_seconds();
    for (int i = 0; i < kRuns; ++i) work();
    finish(ctx, comm);
    return (now_seconds() - start) / kRuns;
  };
  Exchanges e;
  abort_on_error(&comm.group(), [&] { e.seconds = time(once); });
  const double others = 1.0 - 1.0 / comm.size();
  e.bytes = others * static_cast<double>(layout.elements()) *
            static_cast<double>(dtype_bytes(there) + dtype_bytes(back));
  const int64_t count = layout.elements();
  double all_reduce = 0;
  abort_on_error(&comm.group(),
                 [&] { all_reduce = time([&] { comm.all_reduce(grads.data(), count); }); });
  e.peak_bytes_per_second = 2 * others * static_cast<double>(count) * sizeof(float) / all_reduce;
  return e;
}

int run_on_ranks(const ScaleOptions& o, RankSession& session) {
  if (o.threads > 0) set_num_threads(o.threads);
  Communicator* comm = session.connect(o.device == "cuda" ? Device::kCuda : Device::kCpu);
  RWKV_CHECK(comm != nullptr, ConfigError,
             "scale: found one rank; give --gpus N, or start it with mpirun -n N");
  const bool leads = session.rank() == 0;
  std::vector<std::string> shapes = o.shapes;
  if (shapes.empty()) shapes = {"4096x8", "512x16"};
  const std::vector<int> stages = o.zero.empty() ? std::vector<int>{1} : o.zero;
  const Environment env = environment(o.device == "cuda" ? Device::kCuda : Device::kCpu);
  const Exchanges exchanges = time_exchanges(o, *comm);
  const double bus = exchanges.bytes / exchanges.seconds;
  if (leads)
    std::printf(
        "%s\n%d ranks, %s; RWKV-7 L%lld-D%lld V%lld, gradients travel as %s%s\n"
        "exchanges of a step by themselves: %.3f ms, %.0f GB/s per link; a large "
        "all-reduce: %.0f GB/s\n",
        to_string(env).c_str(), comm->size(), comm->description().c_str(),
        static_cast<long long>(o.layers), static_cast<long long>(o.width),
        static_cast<long long>(o.vocab), o.exchange.c_str(),
        o.overlap ? "" : ", after the backward", exchanges.seconds * 1e3, bus * 1e-9,
        exchanges.peak_bytes_per_second * 1e-9);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const std::string& text : shapes) {
    const Shape shape = parse_shape(text);
    std::string algorithms;
    Timing alone;
    // Every rank at the same time: GPUs of one machine differ, and the slowest sets the pace.
    agree(&comm->group(), [&] { alone = time_steps(o, shape, nullptr, 0, algorithms); });
    std::vector<double> medians(static_cast<size_t>(comm->size()));
    comm->group().all_gather(&alone.median, sizeof alone.median, medians.data());
    const double slowest = std::ranges::max(medians);
    for (const int zero : stages) {
      const Timing all = time_steps(o, shape, comm, zero, algorithms);
      if (!leads) continue;
      const double efficiency = alone.median / all.median;
      const double tokens =
          static_cast<double>(shape.batch * shape.tokens * comm->size()) / all.median;
      std::printf(
          "%-10s zero %d: alone %.3f ms (slowest %.3f), %d ranks %.3f ms (minimum %.3f): "
          "efficiency "
          "%.1f %%, %.0f tokens/s, exposed %.3f of %.3f ms\n",
          text.c_str(), zero, alone.median * 1e3, slowest * 1e3, comm->size(), all.median * 1e3,
          all.minimum * 1e3, 100 * efficiency, tokens, (all.median - alone.median) * 1e3,
          exchanges.seconds * 1e3);
      std::fflush(stdout);
      rows.push_back({{"shape", text},
                      {"zero", zero},
                      {"alone_ms", alone.median * 1e3},
                      {"slowest_alone_ms", slowest * 1e3},
                      {"step_ms", all.median * 1e3},
                      {"step_ms_minimum", all.minimum * 1e3},
                      {"efficiency", efficiency},
                      {"tokens_per_s", tokens},
                      {"exposed_ms", (all.median - alone.median) * 1e3}});
    }
  }
  if (!leads || o.json.empty()) return 0;
  const nlohmann::ordered_json j = {
      {"bench", "scale"},
      {"date", today()},
      {"commit", env.commit},
      {"kernel_hash", env.kernel_hash},
      {"device", env.device.empty() ? env.cpu : env.device},
      {"ranks", comm->size()},
      {"library", comm->description()},
      {"layers", o.layers},
      {"width", o.width},
      {"vocab", o.vocab},
      {"exchange", o.exchange},
      {"overlap", o.overlap},
      {"grad_checkpointing", o.grad_checkpointing},
      {"exchanges_ms", exchanges.seconds * 1e3},
      {"exchanges_bytes_per_second", bus},
      {"all_reduce_bytes_per_second", exchanges.peak_bytes_per_second},
      {"rows", rows}};
  write_file(o.json, record_text(j.dump()));
  return 0;
}

}  // namespace

void add_scale_flags(CLI::App* app, ScaleOptions& o) {
  app->add_option("--gpus", o.gpus, "start so many local ranks, one per GPU")
      ->check(CLI::Range(1, 64));
  app->add_option("--device", o.device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app->add_option("--dtype", o.dtype, "of activations: auto (bf16 on cuda), f32, bf16")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->capture_default_str();
  app->add_option("--layers", o.layers, "layers")->capture_default_str();
  app->add_option("--width", o.width, "channels")->capture_default_str();
  app->add_option("--vocab", o.vocab, "vocabulary")->capture_default_str();
  app->add_option("--head-size", o.head_size, "32, 64 or 128")->capture_default_str();
  app->add_option("--shape", o.shapes,
                  "TOKENSxBATCH of one rank, repeatable (default: 4096x8 and 512x16)");
  app->add_option("--zero", o.zero, "dist.zero, repeatable (default: 1)")->check(CLI::Range(0, 2));
  app->add_option("--exchange", o.exchange, "dist.exchange: f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app->add_flag("!--no-overlap", o.overlap, "exchange gradients after the backward");
  app->add_option("--grad-checkpointing", o.grad_checkpointing, "none or block")
      ->check(CLI::IsMember({"none", "block"}))
      ->capture_default_str();
}

int run_scale(const ScaleOptions& o) {
  for (const std::string& s : o.shapes) parse_shape(s);
  return run_ranks(o.gpus, "rwkv-bench",
                   [&](RankSession& session) { return run_on_ranks(o, session); });
}

}  // namespace rwkv::bench
