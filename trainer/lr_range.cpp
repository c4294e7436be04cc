#include "trainer/lr_range.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/io/atomic_file.h"
#include "data/io/gnuplot.h"
#include "kernels/core/error.h"
#include "trainer/data_source.h"
#include "trainer/gemm_choices.h"
#include "trainer/memory.h"
#include "trainer/metrics.h"
#include "trainer/recompute.h"
#include "trainer/signals.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

std::string plot_script(const LrRangeResult& r, const std::string& path) {
  std::ostringstream gp;
  gp.precision(9);
  gp << "set terminal pngcairo size 900,540\n"
     << gnuplot_output(path) << "set logscale x\nset format x '%g'\nset xlabel 'learning rate'\n"
     << "set ylabel 'loss (nats per token)'\nset grid\n";
  if (r.rose)
    gp << "set arrow from " << r.suggestion << ", graph 0 to " << r.suggestion
       << ", graph 1 nohead dashtype 2\nset label sprintf('suggestion %.2g', " << r.suggestion
       << ") at " << r.suggestion << ", graph 0.95 offset 1,0\n";
  gp << "plot '-' using 1:2 with points pt 7 ps 0.4 lc rgb 'gray' title 'step', "
     << "'-' using 1:2 with lines lw 2 title 'running mean'\n";
  for (const auto& p : r.points) gp << p.lr << ' ' << p.loss << '\n';
  gp << "e\n";
  for (const auto& p : r.points) gp << p.lr << ' ' << p.smooth << '\n';
  gp << "e\n";
  return gp.str();
}

std::string to_json(const LrRangeResult& r) {
  nlohmann::ordered_json j;
  j["suggestion"] = r.suggestion;
  j["lowest"] = r.lowest;
  j["steepest"] = r.steepest;
  j["fell"] = r.fell;
  j["rose"] = r.rose;
  for (const auto& p : r.points)
    j["points"].push_back({{"lr", p.lr}, {"loss", p.loss}, {"smooth", p.smooth}});
  return j.dump(1) + "\n";
}

}  // namespace

void judge_lr_range(LrRangeResult& r) {
  RWKV_CHECK(r.points.size() >= 3, NonFiniteError, "learning-rate range test: the loss exploded ",
             "after ", r.points.size(), " steps; start with a smaller --lr-min");
  const auto best = std::ranges::min_element(r.points, {}, &LrRangeResult::Point::smooth);
  r.lowest = best->lr;
  r.fell = best - r.points.begin() > 5;
  r.rose = r.rose || best + 1 != r.points.end();
  double slope = 0;
  r.steepest = r.lowest;
  // Differences over five steps: single ones are mostly noise.
  for (auto p = r.points.begin(); p + 5 < best; ++p) {
    const double s = (p[5].smooth - p[0].smooth) / std::log10(p[5].lr / p[0].lr);
    if (s >= slope) continue;
    slope = s;
    r.steepest = std::sqrt(p[0].lr * p[5].lr);
  }
  r.suggestion = r.lowest / 10;
}

LrRangeResult find_lr(const TrainConfig& config, const TrainerOptions& options,
                      const LrRangeOptions& range) {
  RWKV_CHECK(range.steps >= 3 && range.lr_min > 0 && range.lr_max > range.lr_min, ConfigError,
             "learning-rate range test: ", range.steps, " steps from ", range.lr_min, " to ",
             range.lr_max, "; expected at least 3 steps and 0 < lr-min < lr-max");
  StatusLine line(options.quiet);
  TrainStepOptions so =
      step_options(with_recomputation(config, options.device, nullptr), options.device);
  so.eval = false;
  TrainStep step(config.model, so);
  require_memory(step, config.limits.memory_mib);
  const TrainData data = open_train_data(config.data.train, config);
  const std::string dir = config.run_dir();
  std::error_code ec;
  fs::create_directories(dir, ec);
  RWKV_CHECK(!ec, IoError, "making the run folder ", dir, ": ", ec.message());
  const StopSignals stop;
  step.allocate();
  step.model().init_params(step.values(), init_options(config));
  step.upload();
  prepare_step(step, "", [&](const std::string& text) { line.message(text); });
  const auto loader = make_loader(data, config, 0);

  LrRangeResult result;
  const double ratio =
      std::pow(range.lr_max / range.lr_min, 1.0 / static_cast<double>(range.steps - 1));
  double lr = range.lr_min, mean = 0, weight = 0, best = INFINITY;
  for (int64_t n = 0; n < range.steps && stop.received() == 0; ++n, lr *= ratio) {
    for (int64_t m = 0; m < config.train.micro_batches; ++m) {
      const Batch& batch = loader->next();
      std::copy(batch.x.begin(), batch.x.end(), step.tokens().begin());
      std::copy(batch.y.begin(), batch.y.end(), step.targets().begin());
      step.accumulate(m);
    }
    const TrainStep::Result r = step.finish(lr);
    result.rose = !r.finite;
    if (result.rose) break;
    mean = 0.9 * mean + 0.1 * r.loss;
    weight = 0.9 * weight + 0.1;
    const double smooth = mean / weight;
    best = std::min(best, smooth);
    result.rose = smooth > 2 * best;
    if (result.rose) break;
    result.points.push_back({lr, r.loss, smooth});
    if ((n + 1) % 10 == 0)
      line.message(str("step ", n + 1, "/", range.steps, "  lr ", lr, "  loss ", r.loss));
  }
  if (stop.received() != 0)
    line.message(str("stopped by ", stop.name(), " after ", result.points.size(), " steps"));
  if (stop.received() != 0 && result.points.size() < 3) {
    result.stopped_early = true;
    return result;
  }
  judge_lr_range(result);
  result.json_path = (fs::path(dir) / "find_lr.json").string();
  write_file_atomic(result.json_path, to_json(result));
  const std::string picture = (fs::path(dir) / "find_lr.png").string();
  try {
    if (draw_picture(picture, plot_script(result, picture))) result.picture_path = picture;
  } catch (const IoError& e) {
    result.picture_problem = e.what();
  }
  return result;
}

}  // namespace rwkv
