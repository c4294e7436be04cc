// rwkv-bench wkv --arch rwkv4: forward and backward of the WKV-4 variants, side by side.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/wkv/registry.h"
#include "tools/bench/bench.h"
#include "tools/bench/cuda_timing.h"
#include "tools/bench/device_values.h"
#include "tools/bench/stopwatch.h"
#include "tools/bench/wkv4_report.h"

namespace rwkv::bench {
namespace {

/// Elements of the operands that are drawn; larger shapes repeat them.
constexpr int64_t kDrawn = int64_t{1} << 18;

WkvShape parse_shape(const std::string& text) {
  char extra = 0;
  long long b = 0, t = 0, c = 0;
  const int got = std::sscanf(text.c_str(), "%lld,%lld,%lld%c", &b, &t, &c, &extra);
  RWKV_CHECK(got == 3 && b >= 1 && t >= 1 && c >= 1, ConfigError, "--shape: found '", text,
             "', expected three positive numbers B,T,C such as 8,4096,768 with --arch rwkv4");
  return {b, t, c, 1, false};
}

/// Shapes in groups of equal batch and width, ascending lengths.
std::vector<WkvShape> shapes_of(const WkvOptions& options) {
  std::vector<WkvShape> shapes;
  for (const std::string& text : options.shapes) shapes.push_back(parse_shape(text));
  std::string range = options.lengths;
  if (shapes.empty()) {
    for (const int64_t width : {32, 256, 768})
      for (const int64_t batch : {1, 8}) shapes.push_back({batch, 1, width, 1, false});
    if (range.empty()) range = "64:524288";
  }
  const std::vector<int64_t> lengths = parse_lengths(range);
  if (lengths.empty()) return shapes;
  std::vector<WkvShape> all;
  for (WkvShape shape : shapes) {
    for (const int64_t t : lengths) {
      shape.tokens = t;
      all.push_back(shape);
    }
  }
  return all;
}

std::string shape_name(const WkvShape& s) {
  return str("B ", s.batch, ", T ", s.tokens, ", d ", s.heads);
}

std::vector<const WkvKernel*> variants_for(const WkvShape& shape, Device device, DType io,
                                           const std::vector<std::string>& wanted) {
  std::vector<const WkvKernel*> found;
  if (wanted.empty()) {
    for (const WkvKernel* k : all_wkv_kernels())
      if (wkv_misfit(*k, "wkv4", device, io, shape).empty()) found.push_back(k);
  }
  for (const std::string& name : wanted) {
    const WkvKernel* k = &select_wkv("wkv4", device, io, shape, name);
    if (std::ranges::find(found, k) == found.end()) found.push_back(k);
  }
  RWKV_CHECK(!found.empty(), ConfigError, "no WKV-4 variant on ", device_name(device), " with ",
             dtype_name(io), " vectors fits ", shape_name(shape),
             "; rwkv-bench wkv --arch rwkv4 --list says why");
  return found;
}

void fail(Wkv4Report& report, std::string text) {
  std::fprintf(stderr, "rwkv-bench: %s\n", text.c_str());
  report.failures.push_back(std::move(text));
}

/// Whether the variant is as exact as it should be; measured once, and noted if it is not.
bool correct(Context& ctx, const WkvKernel& kernel, Wkv4Report& report) {
  const Wkv4Errors limits = wkv4_error_limits(kernel.io);
  for (const Wkv4VariantErrors& e : report.errors)
    if (e.variant == kernel.name) return wkv4_error_violations(e.errors, limits).empty();
  report.errors.push_back({std::string(kernel.name), wkv4_errors(ctx, kernel)});
  const std::string wrong = wkv4_error_violations(report.errors.back().errors, limits);
  if (!wrong.empty())
    fail(report, str(kernel.name, ": not timed, its errors are too large: ", wrong));
  return wrong.empty();
}

/// What one run (forward and backward) of a variant on a shape is expected to take, from the
/// longest shorter sequence of the same batch and width; 0: nothing is known.
double expected_seconds(const Wkv4Report& report, const WkvKernel& kernel, const WkvShape& shape) {
  double seconds = 0;
  int64_t known = 0;
  for (const Wkv4Row& row : report.rows) {
    if (row.variant != kernel.name || row.batch != shape.batch || row.channels != shape.heads ||
        row.tokens > shape.tokens || row.tokens <= known)
      continue;
    known = row.tokens;
    seconds = row.both.minimum * static_cast<double>(shape.tokens) / static_cast<double>(known);
  }
  return seconds;
}

/// A variant on a shape while it is being timed.
struct Run {
  const WkvKernel* kernel;
  Wkv4Rates rates = Wkv4Rates::kModel;
  int repeats = 0;
  double replaced = -1;
  std::vector<double> forward, backward;
};

/// The first run of a variant, untimed: with rates of a model, or slow ones if it refuses those.
/// Says how many timed ones shall follow. False: it refuses both.
bool warm_up(Context& ctx, Wkv4Problem& problem, const WkvShape& shape, const WkvOptions& options,
             Stopwatch& time, Run& run, Wkv4Report& report) {
  double seconds = 0;
  try {
    seconds = time([&] { problem.forward(*run.kernel, run.rates); });
  } catch (const ConfigError& e) {
    if (run.rates == Wkv4Rates::kSlow) {
      report.left_out.push_back(str(run.kernel->name, " at ", shape_name(shape), ": ", e.what()));
      return false;
    }
    run.rates = Wkv4Rates::kSlow;
    return warm_up(ctx, problem, shape, options, time, run, report);
  }
  seconds += time([&] { problem.backward(*run.kernel, run.rates); });
  const double most = options.repeats;
  run.repeats = static_cast<int>(std::clamp(options.seconds / seconds, std::min(3.0, most), most));
  run.replaced = problem.replaced_share(*run.kernel, run.rates);
  for (const TensorView& view : {problem.y(), problem.gradient(0), problem.tau_gradient()})
    // A sample, the last tokens: what is not finite in the state stays so.
    for (const double x : read_values(ctx, view, int64_t{1} << 16))
      RWKV_CHECK(std::isfinite(x), Error, run.kernel->name, " at ", shape_name(shape),
                 ": a result is not finite");
  return true;
}

/// Operands of a width, kept from shape to shape.
struct Inputs {
  int64_t channels = 0, rows = 0;
  Wkv4Data data;
  void prepare(const WkvShape& shape) {
    const int64_t most = std::max<int64_t>(kDrawn / shape.heads, 64);
    const int64_t want = std::min(shape.tokens, most);
    if (channels == shape.heads && rows >= want) return;
    channels = shape.heads;
    rows = shape.tokens > 64 ? most : want;
    data = make_wkv4_data({"bench", Wkv4Kind::kModel, {1, rows, channels, 1, false}, 4});
  }
};

/// Appends the rows of one shape and type.
void bench_shape(Context& ctx, const WkvShape& shape, DType io, const WkvOptions& options,
                 const Inputs& inputs, Wkv4Report& report) {
  std::vector<Run> runs;
  for (const WkvKernel* kernel : variants_for(shape, report.device, io, options.variants)) {
    if (!correct(ctx, *kernel, report)) continue;
    const double seconds = expected_seconds(report, *kernel, shape);
    if (seconds <= report.limit_s)
      runs.push_back({.kernel = kernel});
    else
      report.left_out.push_back(str(kernel->name, " at ", shape_name(shape), ": about ", seconds,
                                    " s a run, more than the ", report.limit_s, " s of --limit"));
  }
  if (runs.empty()) return;
  std::vector<const WkvKernel*> kernels;
  for (const Run& run : runs) kernels.push_back(run.kernel);
  Wkv4Problem problem(ctx, shape, io, kernels);
  problem.fill(inputs.data);
  Stopwatch time(ctx);
  std::erase_if(
      runs, [&](Run& run) { return !warm_up(ctx, problem, shape, options, time, run, report); });
  const bool gpu = report.device == Device::kCuda;
  for (int repeat = -1; repeat < options.repeats; ++repeat) {
    if (gpu && repeat == 0) backend::cuda_profile(true);
    for (Run& run : runs) {  // interleaved: slow moments hit every variant
      if (repeat >= run.repeats) continue;
      if (repeat < 0 && run.repeats < options.repeats) continue;  // slow: warm enough
      const double f = time([&] { problem.forward(*run.kernel, run.rates); });
      const double b = time([&] { problem.backward(*run.kernel, run.rates); });
      if (repeat < 0) continue;
      run.forward.push_back(f);
      run.backward.push_back(b);
    }
  }
  if (gpu) backend::cuda_profile(false);
  const std::string_view chosen = select_wkv("wkv4", report.device, io, shape, "auto").name;
  for (const Run& run : runs) {
    Wkv4Row row = wkv4_row(*run.kernel, shape, run.rates, run.forward, run.backward);
    row.replaced = run.replaced;
    row.saved_bytes = static_cast<double>(problem.saved_bytes(*run.kernel));
    row.chosen = run.kernel->name == chosen;
    report.rows.push_back(std::move(row));
  }
}

}  // namespace

int run_wkv4(const WkvOptions& options) {
  Wkv4Report report;
  report.device = parse_device(options.device);
  const bool gpu = report.device == Device::kCuda;
  const std::vector<DType> usual =
      gpu ? std::vector<DType>{DType::kF32, DType::kBF16} : std::vector<DType>{DType::kF32};
  const std::vector<DType> types = parse_dtypes(options.dtypes, report.device, usual);
  const std::vector<WkvShape> shapes = shapes_of(options);
  if (options.list) {
    for (const WkvShape& shape : shapes) std::printf("%s\n", list_wkv(shape, "wkv4").c_str());
    return 0;
  }
  if (options.threads > 0) set_num_threads(options.threads);
  report.limit_s = options.limit > 0 ? options.limit : gpu ? 1 : 0.1;
  Context ctx(report.device);
  report.env = environment(report.device);
  report.copy_bytes_per_s = gpu ? cuda_copy_bandwidth(ctx) : copy_bandwidth();
  print_wkv4_head(report, options.repeats);
  Inputs inputs;
  for (const WkvShape& shape : shapes) {
    inputs.prepare(shape);
    const size_t first = report.rows.size(), left_out = report.left_out.size();
    for (const DType io : types) {
      try {
        bench_shape(ctx, shape, io, options, inputs, report);
      } catch (const ConfigError&) {
        throw;
      } catch (const Error& e) {  // too large for the memory, for instance: on with the next
        fail(report, str(shape_name(shape), ", ", dtype_name(io), ": ", e.what()));
      }
    }
    print_wkv4_shape(report, first);
    for (size_t i = left_out; i < report.left_out.size(); ++i)
      std::printf("left out: %s\n", report.left_out[i].c_str());
    std::fflush(stdout);
  }
  // Other programs may have taken memory's time before; a GPU is ours alone.
  if (!gpu) report.copy_bytes_per_s = std::max(report.copy_bytes_per_s, copy_bandwidth());
  print_wkv4_errors(report);
  print_wkv4_summary(report);
  if (!options.json.empty()) write_wkv4_json(options.json, report);
  if (!options.plot.empty() && !report.rows.empty()) plot_wkv4(options.plot, report);
  return report.failures.empty() ? 0 : 1;
}

}  // namespace rwkv::bench
