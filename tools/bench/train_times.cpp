#include "tools/bench/train_times.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

#include "kernels/core/backend.h"
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
constexpr int64_t kPublishedBatch = 2, kPublishedContext = 1024;
/// The last one would flatten the others: the chart leaves it out, as its first version did.
constexpr double kTallestBar = 1000;

struct Row {
  std::string config, variant;
  SmokeResult result;
  TrainConfig run;
  DType dtype = DType::kF32;
  bool chosen = false;   ///< auto takes this variant
  size_t memory = 0;     ///< what the run allocates on the device
  size_t left_over = 0;  ///< CUDA: in use on the device afterwards, beyond what was before
};

/// Kernels of the config's architecture.
std::string_view op_of(const TrainConfig& config) {
  return config.model.architecture == "rwkv4" ? "wkv4" : "wkv7";
}

/// The full name of what `wanted` means for this config. Throws ConfigError if nothing fits.
std::string resolve(TrainConfig config, const std::string& wanted, Device device) {
  config.set_wkv(wanted);
  return TrainStep(config.model, step_options(config, device)).wkv_name();
}

/// Full names of the variants that can train this config on the device, or of those wanted.
std::vector<std::string> variants_for(const TrainConfig& config, const TrainTimesOptions& o,
                                      Device device) {
  const std::string_view op = op_of(config);
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    if (std::ranges::find(names, name) == names.end()) names.push_back(name);
  };
  for (const std::string& wanted : o.variants) {
    // A variant of the other architecture only is meant for the other configs.
    const auto named = [&](const WkvKernel* k, bool mine) {
      return (k->name == wanted || k->family == wanted) && (k->op == op) == mine;
    };
    const auto kernels = all_wkv_kernels();
    if (std::ranges::any_of(kernels, [&](const WkvKernel* k) { return named(k, false); }) &&
        std::ranges::none_of(kernels, [&](const WkvKernel* k) { return named(k, true); }))
      continue;
    add(resolve(config, wanted, device));
  }
  if (!o.variants.empty()) return names;
  for (const WkvKernel* k : all_wkv_kernels()) {
    if (k->op != op || k->device != device || k->backward == nullptr || k->state != DType::kF32)
      continue;
    try {
      add(resolve(config, std::string(k->name), device));
    } catch (const ConfigError&) {  // another dtype, head size or length
    }
  }
  RWKV_CHECK(!names.empty(), ConfigError, "no variant of ", op, " on ", device_name(device),
             " fits this config; see rwkv-bench wkv --list");
  return names;
}

nlohmann::ordered_json to_json(const std::vector<Row>& rows, const TrainTimesOptions& o,
                               const Environment& env) {
  const bool cuda = o.device == "cuda";
  nlohmann::ordered_json j = {{"benchmark", "train-times"},
                              {"date", today()},
                              {"commit", env.commit},
                              {"kernel_hash", env.kernel_hash},
                              {"device", cuda ? env.device : env.cpu},
                              {"threads", env.threads},
                              {"tf32", false},
                              {"settings", o.settings},
                              {"rows", nlohmann::ordered_json::array()}};
  for (const Row& r : rows) {
    nlohmann::ordered_json row = {
        {"config", r.config},         {"architecture", r.run.model.architecture},
        {"variant", r.variant},       {"dtype", dtype_name(r.dtype)},
        {"batch", r.run.train.batch}, {"context", r.run.train.context}};
    if (r.chosen) row["auto"] = true;
    row.update(nlohmann::ordered_json{{"steps_per_epoch", r.result.steps_per_epoch},
                                      {"ms_per_step", r.result.second_epoch_ms},
                                      {"median_ms", r.result.median_ms},
                                      {"minimum_ms", r.result.minimum_ms},
                                      {"maximum_ms", r.result.maximum_ms},
                                      {"first_epoch_ms_per_step", r.result.first_epoch_ms},
                                      {"tokens_per_s", r.result.tokens_per_s},
                                      {"first_loss", r.result.first_loss},
                                      {"last_loss", r.result.last_loss},
                                      {"memory_bytes", r.memory},
                                      {"data", r.result.data}});
    if (cuda) row["memory_left_over_bytes"] = r.left_over;
    j["rows"].push_back(std::move(row));
  }
  for (const Published& p : kPublished)
    j["published_on_a_laptop_gpu"].push_back({{"name", p.name}, {"ms_per_step", p.ms}});
  return j;
}

/// A variant's name without op and device.
std::string bar_name(const nlohmann::ordered_json& row, bool with_shape) {
  const auto name = row.at("variant").get<std::string>();
  std::string text = name.substr(name.find('.', name.find('.') + 1) + 1);
  text = text.substr(0, text.rfind('.'));
  if (with_shape)
    text =
        str("B", row.at("batch").get<int64_t>(), " T", row.at("context").get<int64_t>(), " ", text);
  return text;
}

/// Bars from a record: one colour per architecture and type, grey for the published times.
void plot(const std::string& path, const nlohmann::ordered_json& j) {
  std::vector<std::string> groups;
  std::set<std::pair<int64_t, int64_t>> shapes;
  const auto group_of = [](const nlohmann::ordered_json& r) {
    return str(r.at("architecture").get<std::string>(), ", ", r.at("dtype").get<std::string>());
  };
  for (const auto& r : j.at("rows")) {
    shapes.emplace(r.at("batch").get<int64_t>(), r.at("context").get<int64_t>());
    if (std::ranges::find(groups, group_of(r)) == groups.end()) groups.push_back(group_of(r));
  }
  RWKV_CHECK(!groups.empty(), ConfigError, "--plot ", path, ": there are no rows to draw");
  const bool rates = shapes.size() > 1;
  const bool published =
      shapes == std::set<std::pair<int64_t, int64_t>>{{kPublishedBatch, kPublishedContext}};
  std::ostringstream data;
  int at = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (const auto& r : j.at("rows"))
      if (group_of(r) == groups[g])
        data << at++ << " "
             << (rates ? 1e-3 * r.at("tokens_per_s").get<double>()
                       : r.at("ms_per_step").get<double>())
             << " " << g << " \"" << bar_name(r, rates) << "\"\n";
    ++at;
  }
  if (published)  // behind the gap: another machine
    for (const auto& p : j.at("published_on_a_laptop_gpu"))
      if (p.at("ms_per_step").get<double>() < kTallestBar)
        data << at++ << " " << p.at("ms_per_step").get<double>() << " " << groups.size() << " \""
             << p.at("name").get<std::string>() << "\"\n";
  const auto& shape = *shapes.begin();
  std::ostringstream gp;
  gp << "$data << EOD\n"
     << data.str() << "EOD\n"
     << "set terminal png truecolor enhanced size " << std::min(1400, 300 + 50 * at)
     << ",640 font ',10'\n"
     << plot_output(path)
     << "set style fill solid 0.85\nset boxwidth 0.7\nset grid ytics\nset yrange [0:*]\nset "
        "offsets 0,0,graph 0.06,0\n"
     << "set ylabel '"
     << (rates ? "thousand tokens per second (second epoch; more is better)"
               : "ms per training step (mean of the second epoch)")
     << "'\nset xtics rotate by -35 nomirror\nset rmargin 12\nset key outside top center "
        "horizontal\n"
     << "set title 'Training by WKV variant, "
     << (rates ? "" : str("batch ", shape.first, ", context ", shape.second, ", "))
     << j.at("device").get<std::string>() << "'\n"
     << "set xrange [-0.7:" << at - (published ? 0.3 : 1.3) << "]\nplot ";
  constexpr const char* kColours[] = {"#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"};
  for (size_t g = 0; g < groups.size(); ++g)
    gp << (g > 0 ? ", " : "") << "$data using 1:($3==" << g
       << "?$2:NaN):xtic(4) with boxes lc rgb '" << kColours[g % std::size(kColours)] << "' title '"
       << groups[g] << "'";
  if (published)
    gp << ", $data using 1:($3==" << groups.size()
       << "?$2:NaN):xtic(4) with boxes lc rgb '#aaaaaa' title 'published, not our measurement: "
          "RWKV-4, f32, a laptop GPU'";
  gp << ", $data using 1:2:(sprintf('%.3g', $2)) with labels offset 0,0.6 notitle\n";
  write_plot(path, gp.str());
}

void print_row(const Row& r) {
  std::printf("%-18s %-27s %5s %5lld %7lld %9.3f %9.3f %9.3f %9.3f %10.0f %8.4f %8.4f %10s\n",
              r.config.c_str(), str(r.chosen ? "*" : " ", r.variant).c_str(),
              std::string(dtype_name(r.dtype)).c_str(), static_cast<long long>(r.run.train.batch),
              static_cast<long long>(r.run.train.context), r.result.second_epoch_ms,
              r.result.median_ms, r.result.minimum_ms, r.result.maximum_ms, r.result.tokens_per_s,
              r.result.first_loss, r.result.last_loss, format_bytes(r.memory).c_str());
  std::fflush(stdout);
}

/// The config as it is run: smoke settings, and no recomputation unless asked for, as the
/// configs' own batches are much larger.
TrainConfig config_for(const std::string& name, std::vector<std::string> settings,
                       const std::string& shape, DType dtype) {
  if (!shape.empty()) {
    long long batch = 0, context = 0;
    char extra = 0;
    const int got = std::sscanf(shape.c_str(), "%lld,%lld%c", &batch, &context, &extra);
    RWKV_CHECK(got == 2 && batch >= 1 && context >= 1, ConfigError, "--shape: found '", shape,
               "', expected batch and context, B,T, such as 16,1024");
    settings.push_back(str("train.batch=", batch));
    settings.push_back(str("train.context=", context));
  }
  settings.push_back(str("kernels.dtype=", dtype_name(dtype)));
  TrainConfig config = smoke_config(load_config(name, settings));
  if (!config.set_by_user("train.grad_checkpointing")) config.train.grad_checkpointing = "none";
  if (!config.set_by_user("train.loss_chunk_tokens")) config.train.loss_chunk_tokens = 0;
  return config;
}

size_t device_memory_in_use(Device device) {
  if (device == Device::kCpu) return 0;
  const backend::DeviceMemory m = backend::cuda_memory();
  return m.total - m.free;
}

/// Runs one config in one shape and type with each variant.
void run_config(const TrainConfig& config, const std::string& name, DType dtype,
                std::span<const float> initial, const TrainTimesOptions& o, Device device,
                std::vector<Row>& rows) {
  const std::string chosen = resolve(config, "auto", device);
  for (const std::string& variant : variants_for(config, o, device)) {
    Row row{.config = name, .variant = variant, .run = config, .dtype = dtype};
    row.chosen = variant == chosen;
    row.run.set_wkv(variant);
    for (const MemoryItem& item : TrainStep(row.run.model, step_options(row.run, device)).memory())
      row.memory += item.bytes;
    TrainerOptions options;
    options.device = device;
    options.quiet = true;
    const size_t before = device_memory_in_use(device);
    try {
      row.result = run_smoke(row.run, options, initial);
    } catch (const ConfigError& e) {
      // Naive sums refuse the decays that a model has; that is a result, unless they were asked
      // for.
      if (!o.variants.empty() || variant.find("naive") == std::string::npos) throw;
      std::printf("%-18s  %-26s refuses: %s\n", name.c_str(), variant.c_str(), e.what());
      continue;
    }
    const size_t after = device_memory_in_use(device);
    row.left_over = after > before ? after - before : 0;
    print_row(row);
    rows.push_back(row);
  }
}

}  // namespace

int run_train_times(const TrainTimesOptions& o) {
  if (!o.from.empty()) {
    RWKV_CHECK(!o.plot.empty(), ConfigError, "--from draws a record: give --plot FILE as well");
    try {
      plot(o.plot, nlohmann::ordered_json::parse(read_file(o.from)));
    } catch (const nlohmann::json::exception&) {
      throw IoError(str("drawing ", o.from, ": it is no record that rwkv-bench train-times --json ",
                        "wrote, or damaged"));
    }
    return 0;
  }
  const Device device = parse_device(o.device);
  const std::vector<DType> usual = device == Device::kCuda
                                       ? std::vector<DType>{DType::kF32, DType::kBF16}
                                       : std::vector<DType>{DType::kF32};
  const std::vector<DType> types = parse_dtypes(o.dtypes, device, usual);
  const std::vector<std::string> shapes =
      o.shapes.empty() ? std::vector<std::string>{""} : o.shapes;
  if (o.threads > 0) set_num_threads(o.threads);
  const Environment env = environment(device);
  std::printf(
      "%s\n*: what auto takes; ms per step: mean, median, least and most of the second "
      "epoch\n",
      to_string(env).c_str());
  std::printf("%-18s  %-26s %5s %5s %7s %9s %9s %9s %9s %10s %8s %8s %10s\n", "config", "variant",
              "type", "batch", "context", "ms/step", "median", "least", "most", "tokens/s", "loss",
              "to", "memory");
  std::vector<Row> rows;
  for (const std::string& name : o.configs) {
    // Drawn once: orthogonal matrices take longer than the steps.
    const TrainConfig first = config_for(name, o.settings, shapes[0], types[0]);
    const auto model = make_model(first.model);
    ParamStore initial(Device::kCpu, model->params(), "initial values");
    model->init_params(initial, init_options(first));
    for (const std::string& shape : shapes)
      for (const DType dtype : types)
        run_config(config_for(name, o.settings, shape, dtype), name, dtype, initial.flat(), o,
                   device, rows);
  }
  RWKV_CHECK(!rows.empty(), ConfigError, "--variant: none of them belongs to one of the configs");
  std::printf(
      "published, not our measurement: RWKV-4, batch %lld, context %lld, f32, a laptop GPU:\n",
      static_cast<long long>(kPublishedBatch), static_cast<long long>(kPublishedContext));
  for (const Published& p : kPublished) std::printf("  %-44s %6.0f ms/step\n", p.name, p.ms);
  const nlohmann::ordered_json record = to_json(rows, o, env);
  if (!o.json.empty()) write_file(o.json, record_text(record.dump()));
  if (!o.plot.empty()) plot(o.plot, record);
  return 0;
}

}  // namespace rwkv::bench
