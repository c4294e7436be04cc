#include "tools/bench/scale.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "kernels/core/parallel.h"
#include "tools/bench/model_sizes.h"
#include "tools/bench/scale_exchanges.h"
#include "tools/bench/scale_simulate.h"
#include "tools/bench/scale_steps.h"
#include "trainer/comm/launch.h"
#include "trainer/shard_layout.h"

namespace rwkv::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kPeakFlops = 989e12;  // dense bf16 of an H100 or H200, by its data sheet

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
  t.recompute_blocks = o.recompute_blocks;
  t.optimizer = {.weight_decay = 0.1, .clip = 1.0};
  t.overlap = o.overlap;
  t.exchange = o.exchange == "bf16" ? DType::kBF16 : DType::kF32;
  t.parcel_elements = o.parcel;
  t.copy_engines = o.copy_engines;
  return t;
}

ModelConfig model_config(const ScaleOptions& o) {
  if (!o.model.empty()) return public_model(o.model);
  ModelConfig c;
  c.n_layer = o.layers;
  c.n_embd = o.width;
  c.vocab_size = o.vocab;
  c.head_size = o.head_size;
  return c;
}

/// trace.json -> trace-4096x8-zero1.json
std::string file_of_row(const std::string& path, const std::string& shape, int zero) {
  const size_t dot = path.rfind('.'), slash = path.rfind('/');
  const bool extension = dot != std::string::npos && (slash == std::string::npos || dot > slash);
  const size_t at = extension ? dot : path.size();
  return str(path.substr(0, at), "-", shape, "-zero", zero, path.substr(at));
}

Json times_json(const TimelineTimes& t) {
  return {{"step_ms", t.step * 1e3},
          {"forward_ms", t.forward * 1e3},
          {"recompute_ms", t.recompute * 1e3},
          {"backward_ms", t.backward * 1e3},
          {"optimizer_ms", t.optimizer * 1e3},
          {"compute_ms", t.compute * 1e3},
          {"exchange_ms", t.exchange * 1e3},
          {"exposed_ms", t.exposed * 1e3},
          {"idle_ms", t.idle * 1e3}};
}

void print_times(const char* what, const TimelineTimes& t) {
  std::printf(
      "  %-12s %8.3f ms traced: forward %.3f, recomputed %.3f, backward %.3f, optimizer %.3f; "
      "exchanges %.3f, exposed %.3f, idle %.3f\n",
      what, t.step * 1e3, t.forward * 1e3, t.recompute * 1e3, t.backward * 1e3, t.optimizer * 1e3,
      t.exchange * 1e3, t.exposed * 1e3, t.idle * 1e3);
}

/// One call's work on one rank.
class ScaleRun {
 public:
  ScaleRun(const ScaleOptions& o, Communicator& comm)
      : o_(o), comm_(comm), leads_(comm.rank() == 0), model_(model_config(o)) {}

  void exchanges() {
    const TrainStepOptions t = step_options(o_, {1, 1});
    by_themselves_ = time_exchanges(
        model_, comm_, {.there = t.exchange, .back = t.dtype, .copy_engines = o_.copy_engines});
    const double bus = by_themselves_.bytes / by_themselves_.seconds;
    head_["exchanges_ms"] = by_themselves_.seconds * 1e3;
    head_["exchanges_bytes_per_second"] = bus;
    head_["all_reduce_bytes_per_second"] = by_themselves_.peak_bytes_per_second;
    if (leads_)
      std::printf(
          "exchanges of a step by themselves: %.3f ms, %.0f GB/s per link; a large all-reduce: "
          "%.0f GB/s\n",
          by_themselves_.seconds * 1e3, bus * 1e-9, by_themselves_.peak_bytes_per_second * 1e-9);
    if (!o_.collectives) return;
    Json list = Json::array();
    for (const CollectiveTime& c : time_collectives(
             comm_, size_t{1} << (comm_.device() == Device::kCuda ? 30 : 20), o_.copy_engines)) {
      if (leads_)
        std::printf("  %-14s %11.0f bytes %9.1f us %7.1f GB/s\n", c.name.c_str(), c.bytes,
                    c.seconds * 1e6, c.bus * 1e-9);
      list.push_back({{"name", c.name},
                      {"bytes", c.bytes},
                      {"us", c.seconds * 1e6},
                      {"bus_bytes_per_second", c.bus}});
    }
    head_["collectives"] = std::move(list);
  }

  void shape(const std::string& text, const std::vector<int>& stages) {
    const Shape shape = parse_shape(text);
    StepWish wish{.model = model_,
                  .options = step_options(o_, shape),
                  .group = &comm_.group(),
                  .choose_recompute = o_.grad_checkpointing == "auto",
                  .repeats = o_.repeats,
                  .traced = o_.traced};
    std::string algorithms;
    for (const int zero : stages) {
      // Every rank at the same time: GPUs of one machine differ, and the slowest sets the pace. In
      // turns with all together, if there is memory for both: clocks drift.
      constexpr int kTurns = 5;
      HostGroup& group = comm_.group();
      wish.options.comm = nullptr;
      StepRun alone, all;
      alone.fits = false;
      std::unique_ptr<StepRunner> one, together;
      if (o_.alone) one = std::make_unique<StepRunner>(wish);
      if (one && !one->run().fits) one.reset();
      if (one) agree(&group, [&] { one->start(algorithms); });
      wish.options.comm = &comm_;
      wish.options.zero = static_cast<ZeroStage>(zero);
      together = std::make_unique<StepRunner>(wish);
      const auto finish_alone = [&] { agree(&group, [&] { alone = one->finish(); }); };
      if (one && (!together->run().fits || together->run().recompute_blocks > 0)) {
        agree(&group, [&] { one->measure(o_.repeats); });
        finish_alone();
        one.reset();
        together = std::make_unique<StepRunner>(wish);
      }
      if (together->run().fits) {
        together->start(algorithms);
        for (int turn = 0; turn < kTurns; ++turn) {
          const int steps = o_.repeats * (turn + 1) / kTurns - o_.repeats * turn / kTurns;
          if (one) agree(&group, [&] { one->measure(steps); });
          together->measure(steps);
        }
        if (one) finish_alone();
        all = together->finish();
      } else {
        all = together->run();
      }
      std::vector<double> medians(static_cast<size_t>(comm_.size()));
      group.all_gather(&alone.time.median, sizeof alone.time.median, medians.data());
      if (leads_) report(text, shape, zero, alone, std::ranges::max(medians), all);
    }
  }

  /// What dist.parcel is, or was chosen to be.
  int64_t parcel_elements() const {
    return ShardLayout(make_model(model_)->params(), comm_.size(), o_.parcel).parcel_elements();
  }

  Json head_ = Json::object(), rows_ = Json::array();

 private:
  void report(const std::string& text, const Shape& shape, int zero, const StepRun& alone,
              double slowest, const StepRun& all) {
    std::printf("%-8s zero %d: ", text.c_str(), zero);
    if (!all.fits) {
      std::printf("needs %s on each GPU, %s are free\n", format_bytes(all.planned_bytes).c_str(),
                  format_bytes(all.free_bytes).c_str());
      rows_.push_back({{"shape", text},
                       {"zero", zero},
                       {"fits", false},
                       {"planned_bytes", all.planned_bytes},
                       {"free_bytes", all.free_bytes}});
      return;
    }
    const double each = static_cast<double>(shape.batch * shape.tokens) / all.time.median;
    const double mfu = all.flops / all.time.median / kPeakFlops;
    Json row = {{"shape", text},
                {"zero", zero},
                {"step_ms", all.time.median * 1e3},
                {"step_ms_minimum", all.time.minimum * 1e3},
                {"tokens_per_s", each * comm_.size()},
                {"tokens_per_s_per_rank", each},
                {"flops", all.flops},
                {"mfu", mfu},
                {"recompute_blocks", all.recompute_blocks},
                {"planned_bytes", all.planned_bytes},
                {"used_bytes", all.used_bytes}};
    std::printf("%d ranks %.3f ms (minimum %.3f), %.0f tokens/s each, MFU %.1f %%, ", comm_.size(),
                all.time.median * 1e3, all.time.minimum * 1e3, each, 100 * mfu);
    if (alone.fits) {
      const double efficiency = alone.time.median / all.time.median;
      const double more = all.time.median - alone.time.median;
      std::printf(
          "alone %.3f ms (slowest %.3f): efficiency %.1f %%, %.3f ms more; exchanges %.3f\n",
          alone.time.median * 1e3, slowest * 1e3, 100 * efficiency, more * 1e3,
          by_themselves_.seconds * 1e3);
      row["alone_ms"] = alone.time.median * 1e3;
      row["slowest_alone_ms"] = slowest * 1e3;
      row["efficiency"] = efficiency;
      row["exposed_ms"] = more * 1e3;
      row["alone_recompute_blocks"] = alone.recompute_blocks;
    } else {
      std::printf("not alone\n");
    }
    std::printf("  recomputes %lld of %lld blocks; planned %s, in use %s of %s\n",
                static_cast<long long>(all.recompute_blocks),
                static_cast<long long>(model_.n_layer), format_bytes(all.planned_bytes).c_str(),
                format_bytes(all.used_bytes).c_str(), format_bytes(all.free_bytes).c_str());
    if (!all.timelines.empty()) timelines(text, zero, alone, all, row);
    rows_.push_back(std::move(row));
    std::fflush(stdout);
  }

  void timelines(const std::string& text, int zero, const StepRun& alone, const StepRun& all,
                 Json& row) {
    if (alone.fits) {
      const int64_t step = typical_step(alone.timelines[0]);
      const TimelineTimes t = timeline_times(alone.timelines[0], step);
      print_times("alone", t);
      row["alone_timeline"] = times_json(t);
      row["profile"] = profile_json(alone.timelines[0], step);
    }
    const int64_t step = typical_step(all.timelines[0]);
    Json list = Json::array();
    for (size_t r = 0; r < all.timelines.size(); ++r) {
      const TimelineTimes t = timeline_times(all.timelines[r], step);
      if (r < 8) print_times(str("rank ", r).c_str(), t);
      list.push_back(times_json(t));
    }
    row["timelines"] = std::move(list);
    row["rank_profile"] = profile_json(all.timelines[0], step);
    if (!o_.trace.empty())
      write_file(file_of_row(o_.trace, text, zero), chrome_trace(all.timelines));
    if (!o_.svg.empty())
      write_file(file_of_row(o_.svg, text, zero),
                 timeline_svg(all.timelines, step,
                              str("L", model_.n_layer, "-D", model_.n_embd, ", ", text,
                                  " per rank, ", comm_.size(), " ranks, dist.zero=", zero)));
  }

  /// When each bucket (the embedding, every block, the head) is first needed after the beginning of
  /// the forward, and when its gradients are complete after the beginning of the backward.
  Json profile_json(const RankTimeline& timeline, int64_t step) const {
    const TimelineTimes t = timeline_times(timeline, step);
    double forward = 1e300, backward = 1e300, forward_end = 0, backward_end = 0;
    std::vector<double> need(static_cast<size_t>(model_.n_layer), 1e300), ready(need.size(), 0);
    for (const TimelineInterval& i : timeline) {
      if (i.step != step || is_exchange(i.kind) || i.kind == TimelineKind::kOptimizer) continue;
      const bool goes_forward = i.kind == TimelineKind::kForward;
      double& begin = goes_forward ? forward : backward;
      double& end = goes_forward ? forward_end : backward_end;
      begin = std::min(begin, i.begin);
      end = std::max(end, i.end);
      int block = -1;
      if (std::sscanf(i.name.c_str(), "blocks.%d", &block) != 1) continue;
      double& first = need[static_cast<size_t>(block)];
      double& last = ready[static_cast<size_t>(block)];
      if (goes_forward) first = std::min(first, i.begin);
      if (!goes_forward) last = std::max(last, i.end);
    }
    double blocks_end = forward, head_end = backward_end;
    for (const TimelineInterval& i : timeline) {
      if (i.step != step || !i.name.starts_with("blocks.")) continue;
      if (i.kind == TimelineKind::kForward) blocks_end = std::max(blocks_end, i.end);
      if (i.kind == TimelineKind::kBackward || i.kind == TimelineKind::kRecompute)
        head_end = std::min(head_end, i.begin);
    }
    Json needs = Json::array({0.0}), readies = Json::array({(backward_end - backward) * 1e3});
    for (const double x : need) needs.push_back((x - forward) * 1e3);
    for (const double x : ready) readies.push_back((x - backward) * 1e3);
    needs.push_back((blocks_end - forward) * 1e3);
    readies.push_back((head_end - backward) * 1e3);
    return {{"forward_ms", (forward_end - forward) * 1e3},
            {"backward_ms", (backward_end - backward) * 1e3},
            {"optimizer_ms", t.optimizer * 1e3},
            {"other_ms",
             (t.step - t.optimizer - (forward_end - forward) - (backward_end - backward)) * 1e3},
            {"need_ms", needs},
            {"ready_ms", readies}};
  }

  const ScaleOptions& o_;
  Communicator& comm_;
  bool leads_;
  ModelConfig model_;
  Exchanges by_themselves_;
};

int run_on_ranks(const ScaleOptions& o, RankSession& session) {
  if (o.threads > 0) set_num_threads(o.threads);
  Communicator* comm =
      session.connect(o.device == "cuda" ? Device::kCuda : Device::kCpu, o.copy_engines);
  RWKV_CHECK(comm != nullptr, ConfigError,
             "scale: found one rank; give --gpus N, or start it with mpirun -n N");
  const bool leads = session.rank() == 0;
  std::vector<std::string> shapes = o.shapes;
  if (shapes.empty()) shapes = {"4096x8", "512x16"};
  const std::vector<int> stages = o.zero.empty() ? std::vector<int>{1} : o.zero;
  const Environment env = environment(o.device == "cuda" ? Device::kCuda : Device::kCpu);
  const ModelConfig model = model_config(o);
  if (leads)
    std::printf("%s\n%d ranks, %s; RWKV-7 L%lld-D%lld V%lld, gradients travel as %s%s%s\n",
                to_string(env).c_str(), comm->size(), comm->description().c_str(),
                static_cast<long long>(model.n_layer), static_cast<long long>(model.n_embd),
                static_cast<long long>(model.vocab_size), o.exchange.c_str(),
                comm->device() == Device::kCpu ? ""
                : comm->uses_copy_engines()    ? " by copy engines"
                                               : " by kernels",
                o.overlap ? "" : ", after the backward");
  ScaleRun run(o, *comm);
  run.exchanges();
  for (const std::string& text : shapes) run.shape(text, stages);
  if (!leads || o.json.empty()) return 0;
  Json j = {{"bench", "scale"},
            {"date", today()},
            {"commit", env.commit},
            {"kernel_hash", env.kernel_hash},
            {"device", env.device.empty() ? env.cpu : env.device},
            {"ranks", comm->size()},
            {"library", comm->description()},
            {"layers", model.n_layer},
            {"width", model.n_embd},
            {"vocab", model.vocab_size},
            {"exchange", o.exchange},
            {"overlap", o.overlap},
            {"copy_engines", comm->uses_copy_engines()},
            {"parcel", run.parcel_elements()},
            {"grad_checkpointing", o.grad_checkpointing},
            {"peak_flops", kPeakFlops}};
  j.update(run.head_);
  j["rows"] = run.rows_;
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
  app->add_option("--model", o.model, "0.1B, 1.5B, 2.9B or 7.2B instead of the next four");
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
  app->add_option("--parcel", o.parcel,
                  "dist.parcel, also of --simulate; -1 (default): by the model's size")
      ->check(CLI::Range(int64_t{-1}, int64_t{1} << 40));
  app->add_flag("!--no-overlap", o.overlap, "exchange gradients after the backward");
  app->add_flag("!--no-copy-engines", o.copy_engines, "dist.copy_engines=false");
  app->add_flag("!--no-alone", o.alone, "do not time ranks without the others");
  app->add_option("--grad-checkpointing", o.grad_checkpointing,
                  "none, block, or auto: as few blocks as memory allows")
      ->check(CLI::IsMember({"none", "block", "auto"}))
      ->capture_default_str();
  app->add_option("--recompute-blocks", o.recompute_blocks,
                  "with block: only the first so many; 0: all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20));
  app->add_flag("--collectives", o.collectives,
                "also time reduce-scatter, all-gather and all-reduce by size");
  app->add_option("--traced", o.traced, "steps whose timeline is taken; 0: none")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app->add_option("--trace", o.trace,
                  "write timelines for chrome://tracing or Perfetto: FILE.json becomes "
                  "FILE-SHAPE-zeroN.json");
  app->add_option("--trace-svg", o.svg, "draw one step of each row, named likewise");
  app->add_option("--simulate", o.simulate,
                  "measure nothing: predict 4 to 1024 ranks from records of this benchmark, one of "
                  "them with --collectives (see docs/scaling.md)")
      ->check(CLI::ExistingFile);
}

int run_scale(const ScaleOptions& o) {
  if (!o.simulate.empty())
    return run_simulation({.records = o.simulate, .json = o.json, .parcel = o.parcel});
  for (const std::string& s : o.shapes) parse_shape(s);
  return run_ranks(o.gpus, "rwkv-bench",
                   [&](RankSession& session) { return run_on_ranks(o, session); });
}

}  // namespace rwkv::bench
