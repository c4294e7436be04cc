#include "tools/bench/scale_simulate.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "model/rwkv.h"
#include "tools/bench/report.h"
#include "trainer/memory.h"
#include "trainer/shard_layout.h"

namespace rwkv::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kFirstParcelElements = int64_t{16} << 20;  // of records that do not say it

StepProfile profile_of(const Json& j, const StepProfile& buckets) {
  StepProfile p = buckets;
  p.forward = j.at("forward_ms").get<double>() * 1e-3;
  p.backward = j.at("backward_ms").get<double>() * 1e-3;
  p.optimizer = j.at("optimizer_ms").get<double>() * 1e-3;
  p.other = std::max(0.0, j.at("other_ms").get<double>() * 1e-3);
  for (const double x : j.at("need_ms")) p.need.push_back(x * 1e-3);
  for (const double x : j.at("ready_ms")) p.ready.push_back(x * 1e-3);
  return p;
}

/// Sizes of the buckets, and which travel together.
StepProfile buckets_of(const ModelConfig& config, int64_t parcel_elements) {
  const auto model = make_model(config);
  const ShardLayout layout(model->params(), 1, parcel_elements);
  StepProfile out;
  out.elements.resize(static_cast<size_t>(layout.groups()));
  for (const ShardLayout::Segment& s : layout.segments())
    out.elements[static_cast<size_t>(s.group)] += static_cast<double>(s.elements);
  for (const ShardLayout::Parcel& p : layout.parcels()) out.parcels.push_back(p.begin);
  return out;
}

ScaleRow row_of(const Json& j, const Json& head, const StepProfile& buckets) {
  ScaleRow row;
  row.shape = j.at("shape").get<std::string>();
  long long tokens = 0, batch = 0;
  RWKV_CHECK(std::sscanf(row.shape.c_str(), "%lldx%lld", &tokens, &batch) == 2, ConfigError,
             "a row's shape: found '", row.shape, "', expected TOKENSxBATCH");
  // For the memory only; builds without CUDA have no kernels to plan a GPU's with.
  row.options.device = backend::has_cuda() ? Device::kCuda : Device::kCpu;
  row.options.dtype = backend::has_cuda() ? DType::kBF16 : DType::kF32;
  row.options.tokens = tokens;
  row.options.batch = batch;
  row.options.zero = static_cast<ZeroStage>(j.at("zero").get<int>());
  row.options.parcel_elements = head.value("parcel", kFirstParcelElements);
  row.options.exchange = head.at("exchange") == "bf16" ? DType::kBF16 : DType::kF32;
  row.options.copy_engines = head.value("copy_engines", false);
  row.options.recompute_blocks = j.value("recompute_blocks", int64_t{0});
  row.options.grad_checkpointing =
      row.options.recompute_blocks > 0 ? GradCheckpointing::kBlock : GradCheckpointing::kNone;
  row.alone = j.contains("profile");
  row.profile = profile_of(row.alone ? j.at("profile") : j.at("rank_profile"), buckets);
  // The medians of many steps without marks count; marks say how a step divides.
  const double scale =
      j.at(row.alone ? "alone_ms" : "step_ms").get<double>() * 1e-3 / row.profile.alone();
  for (double* x :
       {&row.profile.forward, &row.profile.backward, &row.profile.optimizer, &row.profile.other})
    *x *= scale;
  for (auto* list : {&row.profile.need, &row.profile.ready})
    for (double& x : *list) x *= scale;
  // The update was divided among the ranks of the record.
  if (!row.alone && row.options.zero != ZeroStage::kPlain)
    row.profile.optimizer *= head.at("ranks").get<double>();
  row.seconds = j.at("step_ms").get<double>() * 1e-3;
  row.efficiency = j.value("efficiency", 0.0);
  row.flops = j.value("flops", 0.0);
  return row;
}

std::string model_name(const ModelConfig& c) {
  return str("L", c.n_layer, "-D", c.n_embd);
}

}  // namespace

ScaleRecord read_scale_record(const std::string& path) {
  ScaleRecord out;
  try {
    const Json j = Json::parse(read_file(path));
    out.model.n_layer = j.at("layers");
    out.model.n_embd = j.at("width");
    out.model.vocab_size = j.at("vocab");
    out.model.head_size = 64;
    out.ranks = j.at("ranks");
    out.overlap = j.value("overlap", true);
    out.copy_engines = j.value("copy_engines", false);
    const double others = 1 - 1.0 / out.ranks;
    for (const Json& c : j.value("collectives", Json::array())) {
      const MeasuredCollective m{c.at("bytes").get<double>() * others,
                                 c.at("us").get<double>() * 1e-6};
      if (c.at("name") == "reduce-scatter") out.reduce_scatter.push_back(m);
      if (c.at("name") == "all-gather") out.all_gather.push_back(m);
    }
    const StepProfile buckets = buckets_of(out.model, j.value("parcel", kFirstParcelElements));
    for (const Json& r : j.at("rows"))
      if (r.contains("profile") || r.contains("rank_profile"))
        out.rows.push_back(row_of(r, j, buckets));
  } catch (const Json::exception& e) {
    throw ConfigError(
        str("reading ", path, ": ", e.what(), "; expected a record of rwkv-bench scale"));
  }
  return out;
}

ScaleCase case_of(const ScaleRecord& record, const ScaleRow& row, const ScaleFit& fit, int ranks,
                  int zero) {
  return {.ranks = ranks,
          .zero = zero,
          .gradient_bytes = static_cast<double>(dtype_bytes(row.options.exchange)),
          .parameter_bytes = 2,
          .overlap = record.overlap,
          .slowdown = fit.slowdown,
          .stall = fit.stall};
}

ScaleFit fit_records(const std::vector<ScaleRecord>& records, bool copy_engines) {
  ScaleFit fit;
  const auto measured = std::ranges::find_if(records, [&](const ScaleRecord& r) {
    return r.copy_engines == copy_engines && !r.reduce_scatter.empty();
  });
  RWKV_CHECK(measured != records.end(), ConfigError, "simulating: no record ",
             copy_engines ? "with copy engines" : "of NCCL's kernels (--no-copy-engines)",
             " has collectives by size; make one with --collectives");
  fit.cluster.reduce_scatter = fit_collective(measured->reduce_scatter);
  fit.cluster.all_gather = fit_collective(measured->all_gather);
  fit.cluster.measured_ranks = measured->ranks;
  std::vector<MeasuredStep> steps;
  for (const ScaleRecord& r : records)
    for (const ScaleRow& row : r.rows)
      if (row.alone && r.overlap && r.copy_engines == copy_engines)
        steps.push_back({&row.profile,
                         case_of(r, row, fit, r.ranks, static_cast<int>(row.options.zero)),
                         row.seconds});
  if (!steps.empty()) fit.stall = fit_stall(fit.cluster, steps);
  return fit;
}

namespace {

const char* mover(bool copy_engines) {
  return copy_engines ? "copy engines" : "kernels";
}

void print_fit(const ScaleFit& fit, bool copy_engines) {
  const auto say = [](const char* name, const LatencyBandwidth& f) {
    std::printf("  %-15s %6.1f us + bytes / %.0f GB/s (off by at most %.0f %%)\n", name,
                f.latency * 1e6, f.bandwidth * 1e-9, 100 * f.worst_error);
  };
  std::printf("exchanges by %s:\n", mover(copy_engines));
  say("reduce-scatter", fit.cluster.reduce_scatter);
  say("all-gather", fit.cluster.all_gather);
  std::printf(
      "  beside them kernels are %.0f %% slower, and each costs %.2f %% of a block's backward\n",
      100 * fit.slowdown, 100 * fit.stall);
}

Json fit_json(const ScaleFit& fit) {
  const auto collective = [](const LatencyBandwidth& f) {
    return Json{{"latency_us", f.latency * 1e6},
                {"bytes_per_second", f.bandwidth},
                {"worst_error", f.worst_error}};
  };
  return {{"reduce_scatter", collective(fit.cluster.reduce_scatter)},
          {"all_gather", collective(fit.cluster.all_gather)},
          {"slowdown", fit.slowdown},
          {"stall", fit.stall}};
}

/// Predictions beside what was measured.
Json check_record(const ScaleRecord& r, const ScaleFit& fit) {
  Json checked = Json::array();
  for (const ScaleRow& row : r.rows) {
    if (!row.alone) continue;
    const int zero = static_cast<int>(row.options.zero);
    const ScalePrediction p =
        predict_step(row.profile, fit.cluster, case_of(r, row, fit, r.ranks, zero));
    std::printf("%-10s %-8s %4d %-12s %12.3f %12.3f %10.1f%% %10.1f%%%s\n",
                model_name(r.model).c_str(), row.shape.c_str(), zero, mover(r.copy_engines),
                row.seconds * 1e3, p.step * 1e3, 100 * row.efficiency, 100 * p.efficiency,
                r.overlap ? "" : "  after the backward");
    checked.push_back({{"model", model_name(r.model)},
                       {"shape", row.shape},
                       {"zero", zero},
                       {"overlap", r.overlap},
                       {"copy_engines", r.copy_engines},
                       {"measured_ms", row.seconds * 1e3},
                       {"model_ms", p.step * 1e3},
                       {"efficiency", row.efficiency},
                       {"model_efficiency", p.efficiency}});
  }
  return checked;
}

/// A line for each shape and stage of the record.
void predict_record(const ScaleRecord& r, const ScaleFit& fit, const SimulateOptions& o,
                    Json& predicted) {
  const std::vector<int> parcels = buckets_of(r.model, o.parcel).parcels;
  std::set<std::string> seen;
  for (const ScaleRow& row : r.rows) {
    if (!r.overlap || !seen.insert(str(row.shape, row.options.recompute_blocks)).second) continue;
    for (const int zero : {0, 1, 2}) {
      ScaleFit here = fit;
      StepProfile profile = row.profile;
      if (!row.alone) {
        // What already had exchanges beside it is not slowed down twice, and waited for some, which
        // the replay adds. What that leaves of the measured time is kept.
        here.slowdown = here.stall = 0;
        const ScaleCase measured =
            case_of(r, row, here, r.ranks, static_cast<int>(row.options.zero));
        profile.other += row.seconds - predict_step(profile, here.cluster, measured).step;
        profile.other = std::max(0.0, profile.other);
      }
      profile.parcels = parcels;
      std::printf("%-10s %-8s %4d", model_name(r.model).c_str(), row.shape.c_str(), zero);
      for (const int ranks : o.ranks) {
        // The trainer takes copy engines on one machine only.
        if (r.copy_engines && ranks > fit.cluster.ranks_per_node) continue;
        const ScalePrediction p =
            predict_step(profile, here.cluster, case_of(r, row, here, ranks, zero));
        TrainStepOptions planned = row.options;
        planned.parcel_elements = o.parcel;
        planned.planned_ranks = ranks;
        planned.zero = static_cast<ZeroStage>(zero);
        const auto bytes = static_cast<double>(total_bytes(TrainStep(r.model, planned).memory()));
        const double tokens = static_cast<double>(row.options.batch * row.options.tokens);
        const double gib = bytes / (1 << 30);
        if (row.alone)
          std::printf("  %5.1f%% (%4.0f)", 100 * p.efficiency, gib);
        else
          std::printf("  %6.0f (%4.0f)", tokens / p.step, gib);
        predicted.push_back({{"model", model_name(r.model)},
                             {"shape", row.shape},
                             {"zero", zero},
                             {"ranks", ranks},
                             {"copy_engines", r.copy_engines},
                             {"cards_per_node", fit.cluster.cards_per_node},
                             {"parcels", parcels.size()},
                             {"step_ms", p.step * 1e3},
                             {"waiting_ms", p.waiting * 1e3},
                             {"exchange_ms", p.exchange * 1e3},
                             {"efficiency", p.efficiency},
                             {"tokens_per_s_per_rank", tokens / p.step},
                             {"bytes_per_rank", bytes}});
      }
      std::printf("\n");
    }
  }
}

}  // namespace

int run_simulation(const SimulateOptions& o) {
  std::vector<ScaleRecord> records;
  for (const std::string& path : o.records) records.push_back(read_scale_record(path));
  std::map<bool, ScaleFit> fits;  // by whether copy engines move
  for (const ScaleRecord& r : records)
    if (!fits.contains(r.copy_engines)) fits[r.copy_engines] = fit_records(records, r.copy_engines);
  for (const auto& [copies, fit] : fits) print_fit(fit, copies);
  Json checked = Json::array(), predicted = Json::array();
  std::printf("\n%-10s %-8s %4s %-12s %12s %12s %11s %11s\n", "model", "shape", "zero",
              "exchanges by", "measured ms", "model ms", "efficiency", "model");
  for (const ScaleRecord& r : records)
    for (Json& j : check_record(r, fits[r.copy_engines])) checked.push_back(std::move(j));
  for (auto& [copies, fit] : fits) {
    // Network cards do not matter on one machine.
    for (const int cards : copies ? std::vector<int>{fit.cluster.cards_per_node} : o.cards) {
      fit.cluster.cards_per_node = cards;
      if (copies)
        std::printf("\none machine, exchanges by copy engines:");
      else
        std::printf("\n%d ranks and %d network cards of %.0f Gb/s per node, exchanges by kernels:",
                    fit.cluster.ranks_per_node, cards, fit.cluster.card * 8e-9);
      std::printf(
          " efficiency, or where no rank was timed alone its tokens per second (GiB per rank%s)\n",
          backend::has_cuda() ? "" : " on the CPU in f32");
      std::printf("%-10s %-8s %4s", "model", "shape", "zero");
      for (const int n : o.ranks)
        if (!copies || n <= fit.cluster.ranks_per_node) std::printf(" %14d", n);
      std::printf("\n");
      for (const ScaleRecord& r : records)
        if (r.copy_engines == copies) predict_record(r, fit, o, predicted);
    }
  }
  if (o.json.empty()) return 0;
  const Cluster c;
  Json j = {{"bench", "scale-simulation"},
            {"date", today()},
            {"records", o.records},
            {"hop_us", c.hop * 1e6},
            {"node_hop_us", c.node_hop * 1e6},
            {"card_bytes_per_second", c.card},
            {"card_share", c.card_share}};
  for (const auto& [copies, fit] : fits) j[copies ? "copy_engines" : "kernels"] = fit_json(fit);
  j["checked"] = checked;
  j["rows"] = predicted;
  write_file(o.json, record_text(j.dump()));
  return 0;
}

}  // namespace rwkv::bench
