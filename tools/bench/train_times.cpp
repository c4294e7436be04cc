#include "tools/bench/train_times.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/wkv/wkv.h"
#include "model/rwkv.h"
#include "tools/bench/report.h"
#include "trainer/smoke.h"

namespace rwkv::bench {
namespace {

/// Published with the question that this comparison answers ("WKV Implementation Performance"):
/// RWKV-4, 12 layers of 768, batch 2, context 1024, f32, on a laptop GPU that is not named.
struct Published {
  const char* name;
  double ms;
};
constexpr Published kPublished[] = {
    {"torch, CUDA serial (no real backward)", 231},
    {"torch, triton serial", 399},
    {"torch, triton parallel", 351},
    {"jax serial", 394},
    {"jax parallel", 159},
    {"tensorflow parallel", 194},
    {"tensorflow serial (about)", 2000},
};
/// The last one would flatten the others: the chart leaves it out, as its first version did.
constexpr double kTallestBar = 1000;

struct Row {
  std::string config, architecture, variant;
  SmokeResult result;
  TrainConfig run;
};

/// Full names of the variants that can train this config on the device, or of those wanted.
std::vector<std::string> variants_for(const TrainConfig& config, const TrainTimesOptions& o,
                                      Device device) {
  const std::string op = config.model.architecture == "rwkv4" ? "wkv4" : "wkv7";
  const auto try_one = [&](const std::string& name) {
    TrainConfig c = config;
    c.set_wkv(name);
    return TrainStep(c.model, step_options(c, device)).wkv_name();
  };
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    if (std::ranges::find(names, name) == names.end()) names.push_back(name);
  };
  for (const std::string& wanted : o.variants) add(try_one(wanted));
  if (!names.empty()) return names;
  for (const WkvKernel* k : all_wkv_kernels()) {
    if (k->op != op || k->device != device || k->backward == nullptr || k->state != DType::kF32)
      continue;
    try {
      add(try_one(std::string(k->name)));
    } catch (const ConfigError&) {  // another dtype, head size or length
    }
  }
  RWKV_CHECK(!names.empty(), ConfigError, "no variant of ", op, " on ", device_name(device),
             " fits this config; see rwkv-bench wkv --list");
  return names;
}

nlohmann::ordered_json to_json(const std::vector<Row>& rows, const TrainTimesOptions& o,
                               const Environment& env) {
  nlohmann::ordered_json j = {{"bench", "train-times"},
                              {"date", today()},
                              {"commit", env.commit},
                              {"kernel_hash", env.kernel_hash},
                              {"device", env.device.empty() ? env.cpu : env.device},
                              {"threads", env.threads},
                              {"settings", o.settings}};
  for (const Row& r : rows)
    j["rows"].push_back(
        {{"config", r.config},
         {"architecture", r.architecture},
         {"variant", r.variant},
         {"batch", r.run.train.batch},
         {"context", r.run.train.context},
         {"dtype", dtype_name(r.run.dtype(o.device == "cuda" ? Device::kCuda : Device::kCpu))},
         {"steps_per_epoch", r.result.steps_per_epoch},
         {"ms_per_step", r.result.second_epoch_ms},
         {"first_epoch_ms_per_step", r.result.first_epoch_ms},
         {"tokens_per_s", r.result.tokens_per_s},
         {"first_loss", r.result.first_loss},
         {"last_loss", r.result.last_loss},
         {"data", r.result.data}});
  for (const Published& p : kPublished)
    j["published_on_a_laptop_gpu"].push_back({{"name", p.name}, {"ms_per_step", p.ms}});
  return j;
}

/// Bars from a record: one colour per architecture, grey for the published times.
void plot(const std::string& path, const nlohmann::ordered_json& j) {
  std::ostringstream gp;
  const size_t bars = j.at("rows").size() + std::size(kPublished);
  gp << "set terminal pngcairo size " << 260 + 75 * bars << ",720 font ',11'\n"
     << "set output '" << with_extension(path, ".png") << "'\n"
     << "set style fill solid 0.85\nset boxwidth 0.7\nset grid ytics\nset yrange [0:*]\nset "
        "offsets 0,0,graph 0.06,0\n"
     << "set ylabel 'ms per training step (mean of the second epoch)'\n"
     << "set xtics rotate by -35 nomirror\nset rmargin 12\nset key top left\n"
     << "set title 'Training time by WKV variant: " << j.at("device").get<std::string>() << "'\n";
  std::vector<std::string> groups;
  for (const auto& r : j.at("rows")) {
    const auto name = r.at("architecture").get<std::string>();
    if (std::ranges::find(groups, name) == groups.end()) groups.push_back(name);
  }
  int at = 0;
  gp << "$data << EOD\n";
  for (size_t g = 0; g < groups.size(); ++g)
    for (const auto& r : j.at("rows"))
      if (r.at("architecture") == groups[g])
        gp << at++ << " " << r.at("ms_per_step").get<double>() << " " << g << " \""
           << r.at("variant").get<std::string>() << ", B" << r.at("batch").get<int64_t>() << " T"
           << r.at("context").get<int64_t>() << "\"\n";
  ++at;  // a gap: another machine
  for (const auto& p : j.at("published_on_a_laptop_gpu"))
    if (p.at("ms_per_step").get<double>() < kTallestBar)
      gp << at++ << " " << p.at("ms_per_step").get<double>() << " " << groups.size() << " \""
         << p.at("name").get<std::string>() << "\"\n";
  gp << "EOD\nset xrange [-0.7:" << at - 0.3 << "]\nplot ";
  constexpr const char* kColours[] = {"#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"};
  for (size_t g = 0; g <= groups.size(); ++g)
    gp << (g > 0 ? ", " : "") << "$data using 1:($3==" << g
       << "?$2:NaN):xtic(4) with boxes lc rgb '"
       << (g == groups.size() ? "#aaaaaa" : kColours[g % std::size(kColours)]) << "' title '"
       << (g == groups.size() ? "RWKV-4, published (laptop GPU)" : groups[g]) << "'";
  gp << ", $data using 1:2:(sprintf('%.3g', $2)) with labels offset 0,0.6 notitle\n";
  write_plot(path, gp.str());
}

}  // namespace

int run_train_times(const TrainTimesOptions& o) {
  if (!o.from.empty()) {
    RWKV_CHECK(!o.plot.empty(), ConfigError, "--from draws a record: give --plot FILE as well");
    nlohmann::ordered_json record;
    try {
      record = nlohmann::ordered_json::parse(read_file(o.from));
      plot(o.plot, record);
    } catch (const nlohmann::json::exception& e) {
      throw IoError(str("drawing ", o.from, ": ", e.what()));
    }
    return 0;
  }
  RWKV_CHECK(o.device == "cpu" || o.device == "cuda", ConfigError, "--device: found '", o.device,
             "', expected cpu or cuda");
  const Device device = o.device == "cuda" ? Device::kCuda : Device::kCpu;
  if (o.threads > 0) set_num_threads(o.threads);
  const Environment env = environment(device);
  std::printf("%s\n", to_string(env).c_str());
  std::vector<std::string> settings = o.settings;
  if (!o.dtype.empty()) settings.push_back("kernels.dtype=" + o.dtype);
  std::vector<Row> rows;
  std::printf("%-18s %-28s %6s %8s %10s %12s %8s %8s\n", "config", "variant", "batch", "context",
              "ms/step", "tokens/s", "loss", "to");
  for (const std::string& name : o.configs) {
    const TrainConfig config = smoke_config(load_config(name, settings));
    for (const std::string& variant : variants_for(config, o, device)) {
      Row row{.config = name,
              .architecture = config.model.architecture,
              .variant = variant,
              .result = {},
              .run = config};
      row.run.set_wkv(variant);
      TrainerOptions options;
      options.device = device;
      options.quiet = true;
      try {
        row.result = run_smoke(row.run, options);
      } catch (const ConfigError& e) {
        // Naive sums refuse the decays that a model has; that is a result, unless they were asked
        // for.
        if (!o.variants.empty() || variant.find("naive") == std::string::npos) throw;
        std::printf("%-18s %-28s refuses: %s\n", name.c_str(), variant.c_str(), e.what());
        continue;
      }
      std::printf("%-18s %-28s %6lld %8lld %10.3f %12.0f %8.4f %8.4f\n", name.c_str(),
                  variant.c_str(), static_cast<long long>(config.train.batch),
                  static_cast<long long>(config.train.context), row.result.second_epoch_ms,
                  row.result.tokens_per_s, row.result.first_loss, row.result.last_loss);
      std::fflush(stdout);
      rows.push_back(row);
    }
  }
  std::printf("published, RWKV-4, batch 2, context 1024, f32, a laptop GPU:\n");
  for (const Published& p : kPublished) std::printf("  %-44s %6.0f ms/step\n", p.name, p.ms);
  const nlohmann::ordered_json record = to_json(rows, o, env);
  if (!o.json.empty()) write_file(o.json, record.dump(1) + "\n");
  if (!o.plot.empty()) plot(o.plot, record);
  return 0;
}

}  // namespace rwkv::bench
