// rwkv-bench wkv: forward and backward of the WKV variants, side by side.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/wkv/registry.h"
#include "tools/bench/bench.h"
#include "tools/bench/cuda_timing.h"
#include "tools/bench/stopwatch.h"
#include "tools/bench/wkv4_report.h"
#include "tools/bench/wkv_report.h"

namespace rwkv::bench {
namespace {

WkvShape parse_shape(const std::string& text) {
  char extra = 0;
  long long b = 0, t = 0, h = 0, n = 0;
  const int got = std::sscanf(text.c_str(), "%lld,%lld,%lld,%lld%c", &b, &t, &h, &n, &extra);
  RWKV_CHECK(got == 4 && b >= 1 && t >= 1 && h >= 1 && n >= 1, ConfigError, "--shape: found '",
             text, "', expected four positive numbers B,T,H,N such as 1,512,12,64");
  return {b, t, h, n, t == 1};
}

/// The shapes to time: those asked for or the device's own list, with their lengths replaced.
std::vector<WkvShape> shapes_of(const WkvOptions& options, Device device) {
  std::vector<WkvShape> shapes;
  for (const std::string& text : options.shapes) shapes.push_back(parse_shape(text));
  if (shapes.empty() && !options.lengths.empty()) {
    shapes = {{1, 1, 12, 64}};
  } else if (shapes.empty() && device == Device::kCpu) {
    shapes = {{1, 512, 12, 64}, {1, 2048, 12, 64}, {8, 512, 12, 64}};
  } else if (shapes.empty()) {
    shapes = {{8, 4096, 12, 64}, {30, 4096, 12, 64}, {8, 4096, 64, 64},  {16, 512, 12, 64},
              {2, 1024, 12, 64}, {1, 32768, 12, 64}, {1, 131072, 12, 64}};
  }
  const std::vector<int64_t> lengths = parse_lengths(options.lengths);
  if (lengths.empty()) return shapes;
  std::vector<WkvShape> all;
  for (WkvShape shape : shapes) {
    for (const int64_t t : lengths) {
      shape.tokens = t;
      shape.has_state = t == 1;
      all.push_back(shape);
    }
  }
  return all;
}

std::vector<const WkvKernel*> variants_for(const WkvShape& shape, Device device, DType io,
                                           const std::vector<std::string>& wanted) {
  std::vector<const WkvKernel*> found;
  if (wanted.empty()) {
    for (const WkvKernel* k : all_wkv_kernels())
      if (k->state == DType::kF32 && wkv_misfit(*k, "wkv7", device, io, shape).empty())
        found.push_back(k);
  }
  for (const std::string& name : wanted)
    found.push_back(&select_wkv("wkv7", device, io, shape, name));
  RWKV_CHECK(!found.empty(), ConfigError, "no WKV-7 variant on ", device_name(device), " with ",
             dtype_name(io), " vectors fits ", wkv_shape_name(shape),
             "; rwkv-bench wkv --list says why");
  return found;
}

/// What shapes of one head size share.
struct Inputs {
  int64_t head_size = 0, rows = 0;
  std::optional<WkvChecker> checker;
  Wkv7Data data;
};

/// Prepares the inputs of a shape, unless those of the last one serve as well.
void prepare(Inputs& inputs, Context& ctx, DType io, const WkvShape& shape) {
  const bool gpu = ctx.device() == Device::kCuda;
  const int64_t n = shape.head_size;
  // On the CPU the checked shape follows the timed one.
  if (!gpu || inputs.head_size != n) inputs.checker.emplace(ctx, io, shape);
  // Operands of some thousand tokens, repeated for larger shapes; a prime number of rows, so that
  // heads do not repeat each other.
  const int64_t rows =
      gpu ? 4099 : std::min<int64_t>(4099, shape.batch * shape.tokens * shape.heads);
  if (inputs.head_size != n || inputs.rows != rows)
    inputs.data = make_wkv7_data(
        {"bench", gpu ? Wkv7Kind::kPlain : Wkv7Kind::kModel, {1, rows, 1, n, true}, 4});
  inputs.head_size = n;
  inputs.rows = rows;
}

void check_finite(WkvProblem& problem, const WkvKernel& kernel, const WkvShape& shape) {
  const auto finite = [&](WkvResult which) {
    // A sample, the last tokens: what is not finite in the state stays so.
    for (const double x : problem.values(which, int64_t{1} << 20))
      RWKV_CHECK(std::isfinite(x), Error, kernel.name, " at ", wkv_shape_name(shape), ": ",
                 kWkvResultNames[which], " is not finite");
  };
  finite(kY);
  if (!problem.decodes()) finite(kDw);
}

/// Notes and prints what could not be timed.
void fail(WkvReport& report, std::string text) {
  std::fprintf(stderr, "rwkv-bench: %s\n", text.c_str());
  report.failures.push_back(std::move(text));
}

/// Errors of a variant; on CUDA, where the checked shapes are always the same, measured once per
/// head size.
WkvErrors errors_of(const WkvKernel& kernel, const WkvShape& shape, const Inputs& inputs,
                    WkvReport& report) {
  for (const WkvVariantErrors& e : report.errors)
    if (report.device == Device::kCuda && e.variant == kernel.name &&
        e.shape.head_size == shape.head_size)
      return e.errors;
  report.errors.push_back({std::string(kernel.name), shape, inputs.checker->errors(kernel)});
  return report.errors.back().errors;
}

/// Appends the rows of one shape; a variant that is wrong is left out and named.
void bench_shape(Context& ctx, const WkvShape& shape, const WkvOptions& options,
                 const Inputs& inputs, WkvReport& report) {
  auto kernels = variants_for(shape, report.device, report.dtype, options.variants);
  std::erase_if(kernels, [&](const WkvKernel* kernel) {
    const std::string wrong =
        wkv_error_violations(errors_of(*kernel, shape, inputs, report), wkv_error_limits(*kernel));
    if (!wrong.empty())
      fail(report, str(kernel->name, " at ", wkv_shape_name(shape),
                       ": not timed, its errors are too large: ", wrong));
    return !wrong.empty();
  });
  if (kernels.empty()) return;
  WkvProblem problem(ctx, shape, report.dtype, kernels);
  problem.fill(inputs.data);
  Stopwatch time(ctx);
  struct Times {
    std::vector<double> forward, backward;
    int repeats = 0;
  };
  std::vector<Times> times(kernels.size());
  for (int repeat = -2; repeat < options.repeats; ++repeat) {
    for (size_t i = 0; i < kernels.size(); ++i) {  // interleaved: slow moments hit every variant
      if (repeat >= 0 && repeat >= times[i].repeats) continue;
      // Slow calls need no second warm-up.
      if (repeat == -1 && times[i].repeats < options.repeats) continue;
      const double f = time([&] { problem.forward(*kernels[i]); });
      const double b = problem.decodes() ? 0 : time([&] { problem.backward(*kernels[i]); });
      if (repeat < 0) {  // warm-up
        const double most = options.repeats;
        times[i].repeats =
            static_cast<int>(std::clamp(options.seconds / (f + b), std::min(3.0, most), most));
        continue;
      }
      times[i].forward.push_back(f);
      times[i].backward.push_back(b);
    }
  }
  for (size_t i = 0; i < kernels.size(); ++i) {
    problem.forward(*kernels[i]);
    if (!problem.decodes()) problem.backward(*kernels[i]);
    check_finite(problem, *kernels[i], shape);
    const auto rows =
        wkv_rows(*kernels[i], shape, static_cast<double>(problem.saved_bytes(*kernels[i])),
                 times[i].forward, times[i].backward);
    report.rows.insert(report.rows.end(), rows.begin(), rows.end());
  }
}

/// Draws --from.
void draw(const WkvOptions& options) {
  RWKV_CHECK(!options.plot.empty(), ConfigError, "--from ", options.from,
             " draws a record: say where to with --plot FILE.png");
  const std::string text = read_file(options.from);
  if (!is_wkv4_json(text)) {
    plot_wkv(options.plot, parse_wkv_json(text, options.from));
    return;
  }
  const Wkv4Report report = parse_wkv4_json(text, options.from);
  print_wkv4_summary(report);
  plot_wkv4(options.plot, report);
}

}  // namespace

std::vector<int64_t> parse_lengths(const std::string& text) {
  if (text.empty()) return {};
  long long first = 0, last = 0;
  char extra = 0;
  const int got = std::sscanf(text.c_str(), "%lld:%lld%c", &first, &last, &extra);
  RWKV_CHECK(got == 2 && first >= 1 && last >= first, ConfigError, "--lengths: found '", text,
             "', expected FIRST:LAST such as 64:131072");
  std::vector<int64_t> lengths;
  for (long long t = first; t <= last; t *= 2) lengths.push_back(t);
  return lengths;
}

Device parse_device(const std::string& name) {
  RWKV_CHECK(name == "cpu" || name == "cuda", ConfigError, "--device: found '", name,
             "', expected cpu or cuda");
  return name == "cuda" ? Device::kCuda : Device::kCpu;
}

std::vector<DType> parse_dtypes(const std::vector<std::string>& names, Device device,
                                const std::vector<DType>& otherwise) {
  std::vector<DType> types;
  for (const std::string& name : names) {
    RWKV_CHECK(name == "f32" || name == "bf16", ConfigError, "--dtype: found '", name,
               "', expected f32 or bf16");
    RWKV_CHECK(device == Device::kCuda || name != "bf16", ConfigError,
               "--dtype bf16: the CPU computes in f32 only; use --device cuda");
    types.push_back(name == "bf16" ? DType::kBF16 : DType::kF32);
  }
  return types.empty() ? otherwise : types;
}

int run_wkv(const WkvOptions& options) {
  if (!options.from.empty()) {
    draw(options);
    return 0;
  }
  if (options.architecture == "rwkv4") return run_wkv4(options);
  RWKV_CHECK(options.architecture == "rwkv7", ConfigError, "--arch: found '", options.architecture,
             "', expected rwkv7 or rwkv4");
  WkvReport report;
  report.device = parse_device(options.device);
  const DType usual = report.device == Device::kCuda ? DType::kBF16 : DType::kF32;
  const auto types = parse_dtypes(options.dtypes, report.device, {usual});
  RWKV_CHECK(types.size() == 1, ConfigError, "--dtype: found ", types.size(),
             " types, expected one (--arch rwkv4 takes several)");
  report.dtype = types[0];
  const std::vector<WkvShape> shapes = shapes_of(options, report.device);
  if (options.list) {
    for (const WkvShape& shape : shapes) std::printf("%s\n", list_wkv(shape, "wkv7").c_str());
    return 0;
  }
  if (options.threads > 0) set_num_threads(options.threads);
  Context ctx(report.device);
  report.env = environment(report.device);
  report.copy_bytes_per_s =
      report.device == Device::kCuda ? cuda_copy_bandwidth(ctx) : copy_bandwidth();
  if (report.device == Device::kCuda)
    report.gemm_flops_per_s = cuda_gemm_flops(ctx, report.dtype, 8192, 8192, 8192);
  print_wkv_head(report, options.repeats);
  Inputs inputs;
  for (const WkvShape& shape : shapes) {
    const size_t first_row = report.rows.size(), first_error = report.errors.size();
    prepare(inputs, ctx, report.dtype, shape);
    try {
      bench_shape(ctx, shape, options, inputs, report);
    } catch (const ConfigError&) {
      throw;
    } catch (const Error& e) {  // too large for the memory, for instance: on with the next
      fail(report, str(wkv_shape_name(shape), ": ", e.what()));
    }
    print_wkv_rows(report, first_row, first_error);
    const auto choice = explain_wkv_auto("wkv7", report.device, report.dtype, shape);
    report.choices.push_back(str(wkv_shape_name(shape), ": ", choice));
    std::printf("%s\n\n", report.choices.back().c_str());
    std::fflush(stdout);
  }
  if (!options.json.empty()) write_wkv_json(options.json, report);
  if (!options.plot.empty() && !report.rows.empty()) plot_wkv(options.plot, report);
  return report.failures.empty() ? 0 : 1;
}

}  // namespace rwkv::bench
