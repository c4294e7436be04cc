// rwkv-bench wkv --decode: one token of many sequences, the state read and written in place.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "kernels/cases/wkv7_cases.h"
#include "kernels/core/arena.h"
#include "kernels/core/error.h"
#include "kernels/core/memory.h"
#include "kernels/core/parallel.h"
#include "kernels/core/trace.h"
#include "kernels/wkv/registry.h"
#include "model/rwkv.h"
#include "tools/bench/cuda_timing.h"
#include "tools/bench/device_values.h"
#include "tools/bench/wkv_fp16.h"

namespace rwkv::bench {
namespace {

struct Row {
  std::string variant;
  WkvShape shape;
  Timing time;
  double state_bytes = 0, all_bytes = 0;  ///< read and written: by the state; with the vectors
};

/// One step's operands; the state starts at zero and grows over the runs.
class Step {
 public:
  Step(Context& ctx, const WkvKernel& kernel, const WkvShape& s)
      : ctx_(ctx), attrs_{s.head_size, &kernel} {
    const bool half = kernel.state == DType::kF16;
    if (half) attrs_ = {s.head_size, &kernel, kHalfStateScale, true};  // as models have it
    const TensorSpec vec({s.batch, 1, s.heads * s.head_size}, kernel.io),
        state({s.batch, s.heads, s.head_size, s.head_size}, kernel.state),
        counter({s.batch}, DType::kI32), exponent({s.batch, s.heads, s.head_size}, DType::kI8);
    arena_ = Arena(ctx.device(),
                   7 * align_up(vec.bytes()) + align_up(state.bytes()) + align_up(counter.bytes()) +
                       align_up(exponent.bytes()),
                   "decoding benchmark");
    for (int i = 0; i < 6; ++i) in_.push_back(arena_.take(vec, "input"));
    in_.push_back(arena_.take(state, "state"));
    out_ = {arena_.take(vec, "output"), in_[6]};
    if (half) {
      in_.push_back(arena_.take(counter, "counter"));
      in_.push_back(arena_.take(exponent, "exponents"));
      out_.insert(out_.end(), {in_[7], in_[8]});
    }
    ctx.reserve_workspace(kernel.workspace_bytes(s));
    fill_zero(ctx, arena_.at(0, TensorSpec({static_cast<int64_t>(arena_.bytes())}, DType::kI8)));
    // A prime number of rows, repeated: heads do not repeat each other.
    const Wkv7Data d =
        make_wkv7_data({"decode", Wkv7Kind::kModel, {1, 4099, 1, s.head_size, false}, 4});
    const std::vector<float>* from[] = {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b};
    for (size_t i = 0; i < 6; ++i) fill_values(ctx, in_[i], *from[i]);
    ctx.synchronize("decoding benchmark");
    bytes_ = {2.0 * static_cast<double>(state.bytes()),
              2.0 * static_cast<double>(state.bytes()) + 7.0 * static_cast<double>(vec.bytes())};
  }
  void run() {
    OpCall call;
    call.in = in_;
    call.out = out_;
    call.attrs = &attrs_;
    run_forward(ctx_, kWkv7, call);
  }
  bool finite() {
    for (const double x : read_values(ctx_, out_[0]))
      if (!std::isfinite(x)) return false;
    return true;
  }
  std::pair<double, double> bytes() const { return bytes_; }

 private:
  Context& ctx_;
  Wkv7Attrs attrs_;
  Arena arena_;
  std::vector<TensorView> in_, out_;
  std::pair<double, double> bytes_;
};

Row measure(Context& ctx, const WkvKernel& kernel, const WkvShape& shape, int repeats) {
  Step step(ctx, kernel, shape);
  std::vector<double> seconds;
  if (ctx.device() == Device::kCpu) {
    CacheFlusher flusher;
    for (int i = -1; i < repeats; ++i) {
      flusher.flush();
      const double start = now_seconds();
      step.run();
      if (i >= 0) seconds.push_back(now_seconds() - start);
    }
  }
  const Timing time = ctx.device() == Device::kCpu ? summarize(seconds)
                                                   : cuda_time(ctx, repeats, [&] { step.run(); });
  RWKV_CHECK(step.finite(), Error, kernel.name, ": outputs of the decoding step are not finite");
  return {std::string(kernel.name), shape, time, step.bytes().first, step.bytes().second};
}

WkvShape parse(const std::string& text) {
  char extra = 0;
  long long b = 0, h = 0, n = 0;
  const int got = std::sscanf(text.c_str(), "%lld,1,%lld,%lld%c", &b, &h, &n, &extra);
  RWKV_CHECK(got == 3 && b >= 1 && h >= 1 && n >= 1, ConfigError, "--decode with --shape: found '",
             text, "', expected B,1,H,N such as 320,1,64,64");
  return {b, 1, h, n, true};
}

}  // namespace

std::string record_head(const std::string& benchmark, Device device) {
  const Environment env = environment(device);
  nlohmann::ordered_json doc{{"benchmark", benchmark},
                             {"date", today()},
                             {"commit", env.commit},
                             {"kernel_hash", env.kernel_hash}};
  if (device == Device::kCuda) {
    doc["device"] = env.device;
  } else {
    doc["cpu"] = env.cpu;
    doc["threads"] = env.threads;
  }
  return doc.dump();
}

int run_wkv_decode(const WkvOptions& options) {
  const Device device = parse_device(options.device);
  const DType io = parse_dtypes(options.dtypes, device,
                                {device == Device::kCuda ? DType::kBF16 : DType::kF32})[0];
  std::vector<WkvShape> shapes;
  for (const std::string& text : options.shapes) shapes.push_back(parse(text));
  if (shapes.empty() && device == Device::kCuda)
    shapes = {{320, 1, 64, 64, true}, {960, 1, 64, 64, true}};
  if (shapes.empty()) shapes = {{4, 1, 64, 64, true}};
  std::vector<std::string> variants = options.variants;
  if (variants.empty()) variants = {"serial", "fp16-plain", "fp16-dithered"};
  if (options.threads > 0) set_num_threads(options.threads);

  Context ctx(device);
  const double copied = device == Device::kCuda ? cuda_copy_bandwidth(ctx) : copy_bandwidth();
  std::printf("%s\ncopy bandwidth %.1f GB/s (read + write); one step, state in place, medians\n",
              to_string(environment(device)).c_str(), 1e-9 * copied);
  std::printf("%6s %4s %4s  %-30s %10s %8s %12s %8s %10s\n", "B", "H", "N", "variant", "median us",
              "spread", "state GB/s", "% copy", "% with all");
  auto doc = nlohmann::ordered_json::parse(record_head("wkv decode", device));
  doc["copy_bytes_per_second"] = copied;
  doc["rows"] = nlohmann::ordered_json::array();
  for (const WkvShape& shape : shapes)
    for (const std::string& name : variants) {
      const WkvKernel& kernel = select_wkv("wkv7", device, io, shape, name);
      const Row row = measure(ctx, kernel, shape, options.repeats);
      const double t = row.time.median, share = row.state_bytes / t / copied,
                   whole = row.all_bytes / t / copied;
      std::printf("%6lld %4lld %4lld  %-30s %10.2f %7.1f%% %12.1f %7.1f%% %9.1f%%\n",
                  static_cast<long long>(shape.batch), static_cast<long long>(shape.heads),
                  static_cast<long long>(shape.head_size), row.variant.c_str(), 1e6 * t,
                  100 * row.time.spread, 1e-9 * row.state_bytes / t, 100 * share, 100 * whole);
      doc["rows"].push_back({{"variant", row.variant},
                             {"batch", shape.batch},
                             {"heads", shape.heads},
                             {"head_size", shape.head_size},
                             {"dtype", dtype_name(io)},
                             {"state", dtype_name(kernel.state)},
                             {"median_s", t},
                             {"min_s", row.time.minimum},
                             {"spread", row.time.spread},
                             {"repeats", options.repeats},
                             {"state_bytes_per_s", row.state_bytes / t},
                             {"share_of_copy", share},
                             {"share_of_copy_with_vectors", whole}});
    }
  if (!options.json.empty()) write_file(options.json, record_text(doc.dump()));
  return 0;
}

}  // namespace rwkv::bench
