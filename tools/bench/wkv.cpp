// rwkv-bench wkv: forward and backward of the WKV variants, side by side.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/cases/wkv7_cases.h"
#include "kernels/core/arena.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/trace.h"
#include "kernels/ref/wkv7_ref.h"
#include "kernels/wkv/registry.h"
#include "kernels/wkv/wkv.h"
#include "tools/bench/bench.h"
#include "tools/bench/report.h"

namespace rwkv::bench {
namespace {

struct Row {
  std::string variant, shape;
  WkvShape size;
  Timing forward, backward, both;  // backward and both stay zero for a single token
  double error = 0;                // worst relative 2-norm error of outputs and gradients
  double saved_bytes = 0;
};

std::string shape_name(const WkvShape& s) {
  return str("B", s.batch, " T", s.tokens, " H", s.heads, " N", s.head_size);
}

WkvShape parse_shape(const std::string& text) {
  int64_t v[4];
  char extra = 0;
  long long b, t, h, n;
  const int got = std::sscanf(text.c_str(), "%lld,%lld,%lld,%lld%c", &b, &t, &h, &n, &extra);
  RWKV_CHECK(got == 4 && b >= 1 && t >= 1 && h >= 1 && n >= 1, ConfigError, "--shape: found '",
             text, "', expected four positive numbers B,T,H,N such as 1,512,12,64");
  v[0] = b, v[1] = t, v[2] = h, v[3] = n;
  return {v[0], v[1], v[2], v[3], t == 1};
}

/// One variant on one shape: memory, calls and collected times.
class Runner {
 public:
  Runner(const WkvKernel& kernel, const WkvShape& shape, const Wkv7Data& data)
      : kernel_(kernel), shape_(shape), attrs_{shape.head_size, &kernel} {
    const TensorSpec vec({shape.batch, shape.tokens, shape.heads * shape.head_size});
    const TensorSpec state({shape.batch, shape.heads, shape.head_size, shape.head_size});
    std::vector<TensorSpec> in(6, vec);
    if (shape.has_state) in.push_back(state);
    ShapeCall sizes;
    sizes.in = in;
    sizes.attrs = &attrs_;
    kWkv7.infer(sizes);
    saved_bytes_ = sizes.saved[0].bytes();
    ctx_.reserve_workspace(sizes.workspace_bytes);
    arena_ = Arena(Device::kCpu,
                   15 * (align_up(vec.bytes()) + align_up(state.bytes())) + align_up(saved_bytes_),
                   "wkv benchmark");
    const std::vector<float>* from[] = {&data.r, &data.w_logit, &data.k, &data.v,
                                        &data.a, &data.b,       &data.s0};
    for (size_t i = 0; i < in.size(); ++i) {
      in_.push_back(fill(*from[i], in[i]));
      din_.push_back(arena_.take(in[i], "gradient"));
    }
    out_.push_back(arena_.take(vec, "y"));
    dout_.push_back(fill(data.dy, vec));
    if (shape.has_state) {
      out_.push_back(arena_.take(state, "s_out"));
      dout_.push_back(fill(data.ds_out, state));
    }
    // One token: the decoding step, which saves nothing.
    if (shape.tokens > 1) saved_.push_back(arena_.take(sizes.saved[0], "saved"));
    modes_.assign(in.size(), Accum::kWrite);
  }

  double forward() {
    OpCall call = base_call();
    call.out = out_;
    const double start = now_seconds();
    run_forward(ctx_, kWkv7, call);
    return now_seconds() - start;
  }
  double backward() {
    OpCall call = base_call();
    call.dout = dout_;
    call.din = din_;
    call.din_mode = modes_;
    const double start = now_seconds();
    run_backward(ctx_, kWkv7, call);
    return now_seconds() - start;
  }
  bool decodes() const { return shape_.tokens == 1; }
  size_t saved_bytes() const { return decodes() ? 0 : saved_bytes_; }
  const WkvKernel& kernel() const { return kernel_; }

  /// Worst relative error against the double reference; NaN counts as worst.
  double error(const ref::Wkv7Outputs<double>& out, const ref::Wkv7Gradients& g) {
    double worst = 0;
    forward();
    note(worst, out_[0], out.y);
    if (shape_.has_state) note(worst, out_[1], out.s_out);
    if (decodes()) return worst;
    backward();
    const std::vector<double>* want[] = {&g.dr, &g.dw_logit, &g.dk, &g.dv, &g.da, &g.db, &g.ds0};
    for (size_t i = 0; i < din_.size(); ++i) note(worst, din_[i], *want[i]);
    return worst;
  }

  std::vector<double> forward_times, backward_times, both_times;

 private:
  TensorView fill(const std::vector<float>& values, const TensorSpec& spec) {
    const TensorView view = arena_.take(spec, "input");
    std::copy(values.begin(), values.end(), view.f32());
    return view;
  }
  OpCall base_call() const {
    OpCall call;
    call.in = in_;
    call.saved = saved_;
    call.attrs = &attrs_;
    return call;
  }
  static void note(double& worst, const TensorView& got, const std::vector<double>& want) {
    double diff = 0, norm = 1e-300;
    for (size_t i = 0; i < want.size(); ++i) {
      const double e = static_cast<double>(got.f32()[i]) - want[i];
      diff += e * e;
      norm += want[i] * want[i];
    }
    const double rel = std::sqrt(diff / norm);
    if (!(rel <= worst)) worst = rel;
  }

  const WkvKernel& kernel_;
  WkvShape shape_;
  Wkv7Attrs attrs_;
  Context ctx_;
  Arena arena_;
  size_t saved_bytes_ = 0;
  std::vector<TensorView> in_, out_, saved_, dout_, din_;
  std::vector<Accum> modes_;
};

std::vector<const WkvKernel*> variants_for(const WkvShape& shape,
                                           const std::vector<std::string>& wanted) {
  std::vector<const WkvKernel*> found;
  if (wanted.empty()) {
    for (const WkvKernel* k : all_wkv_kernels())
      if (wkv_misfit(*k, "wkv7", Device::kCpu, DType::kF32, shape).empty()) found.push_back(k);
  }
  for (const std::string& name : wanted)
    found.push_back(&select_wkv("wkv7", Device::kCpu, DType::kF32, shape, name));
  return found;
}

/// The double reference is slow: correctness is checked on a cut-down shape.
WkvShape checked_shape(WkvShape s) {
  s.batch = std::min<int64_t>(s.batch, 2);
  s.tokens = std::min<int64_t>(s.tokens, 200);
  s.heads = std::min<int64_t>(s.heads, 2);
  s.has_state = true;
  return s;
}

double worst_error(const WkvKernel& kernel, const WkvShape& shape, const Wkv7Data& d,
                   const ref::Wkv7Outputs<double>& out, const ref::Wkv7Gradients& g) {
  Runner runner(kernel, shape, d);
  return runner.error(out, g);
}

constexpr double kErrorLimit = 1e-5;  // the widest limit of the golden files for fp32

std::vector<Row> bench_shape(const WkvShape& shape, const WkvOptions& options) {
  const auto kernels = variants_for(shape, options.variants);
  const WkvShape small = checked_shape(shape);
  const Wkv7Data check = make_wkv7_data({"check", Wkv7Kind::kModel, small, 3});
  const auto wide = [](const std::vector<float>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  const ref::Wkv7Inputs<double> x{small.batch,     small.tokens,  small.heads,
                                  small.head_size, wide(check.r), wide(check.w_logit),
                                  wide(check.k),   wide(check.v), wide(check.a),
                                  wide(check.b),   wide(check.s0)};
  const auto out = ref::wkv7_forward(x);
  const auto grads = ref::wkv7_backward(x, wide(check.dy), wide(check.ds_out));

  const Wkv7Data data = make_wkv7_data({"bench", Wkv7Kind::kModel, shape, 4});
  std::vector<std::unique_ptr<Runner>> runners;
  std::vector<Row> rows;
  for (const WkvKernel* kernel : kernels) {
    Row row{.variant = std::string(kernel->name), .shape = shape_name(shape), .size = shape};
    row.error = worst_error(*kernel, small, check, out, grads);
    RWKV_CHECK(row.error <= kErrorLimit, Error, kernel->name, " is wrong: relative error ",
               row.error, " at ", shape_name(small), ", limit ", kErrorLimit,
               "; it is not worth timing");
    runners.push_back(std::make_unique<Runner>(*kernel, shape, data));
    row.saved_bytes = static_cast<double>(runners.back()->saved_bytes());
    rows.push_back(row);
  }
  CacheFlusher flusher;
  for (int repeat = -1; repeat < options.repeats; ++repeat) {
    for (auto& runner : runners) {  // interleaved: slow moments hit every variant
      flusher.flush();
      const double f = runner->forward();
      double b = 0;
      if (!runner->decodes()) {
        flusher.flush();
        b = runner->backward();
      }
      if (repeat < 0) continue;  // warm-up
      runner->forward_times.push_back(f);
      runner->backward_times.push_back(b);
      runner->both_times.push_back(f + b);
    }
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].forward = summarize(runners[i]->forward_times);
    if (runners[i]->decodes()) continue;
    rows[i].backward = summarize(runners[i]->backward_times);
    rows[i].both = summarize(runners[i]->both_times);
  }
  return rows;
}

struct Phase {
  const char* name;
  const Timing* timing;
  double flops, bytes;
};

/// Least traffic in fp32: 7 vectors of N forward, 13 backward (spec rwkv7 4.5); decoding moves the
/// state in and out as well.
std::vector<Phase> phases(const Row& row) {
  const WkvShape& s = row.size;
  const auto tokens = static_cast<double>(s.batch * s.tokens * s.heads);
  const auto n = static_cast<double>(s.head_size);
  if (s.tokens == 1) {
    return {{"step", &row.forward, wkv7_forward_flops(s), tokens * (28 * n + 8 * n * n)}};
  }
  return {{"forward", &row.forward, wkv7_forward_flops(s), tokens * 28 * n},
          {"backward", &row.backward, wkv7_backward_flops(s), tokens * 52 * n},
          {"both", &row.both, wkv7_forward_flops(s) + wkv7_backward_flops(s), tokens * 80 * n}};
}

void print_rows(const std::vector<Row>& rows, double bandwidth) {
  std::printf("%-22s %-22s %-8s %9s %9s %7s %8s %7s %7s %9s %8s\n", "shape", "variant", "phase",
              "median ms", "min ms", "spread", "GFLOP/s", "GB/s", "% bound", "saved MiB", "error");
  for (const Row& row : rows) {
    for (const Phase& p : phases(row)) {
      const double t = p.timing->median;
      std::printf("%-22s %-22s %-8s %9.4f %9.4f %6.1f%% %8.1f %7.2f %6.1f%% %9.2f %8.1e\n",
                  row.shape.c_str(), row.variant.c_str(), p.name, 1e3 * t, 1e3 * p.timing->minimum,
                  100 * p.timing->spread, 1e-9 * p.flops / t, 1e-9 * p.bytes / t,
                  100 * p.bytes / t / bandwidth, row.saved_bytes / (1 << 20), row.error);
    }
  }
}

void write_json(const std::string& path, const std::vector<Row>& rows, const Environment& env,
                double bandwidth, int repeats) {
  nlohmann::json doc{{"benchmark", "wkv"}, {"commit", env.commit},
                     {"cpu", env.cpu},     {"threads", env.threads},
                     {"repeats", repeats}, {"copy_bytes_per_second", bandwidth},
                     {"dtype", "f32"},     {"rows", nlohmann::json::array()}};
  for (const Row& row : rows) {
    for (const Phase& p : phases(row)) {
      doc["rows"].push_back({{"variant", row.variant},
                             {"batch", row.size.batch},
                             {"tokens", row.size.tokens},
                             {"heads", row.size.heads},
                             {"head_size", row.size.head_size},
                             {"phase", p.name},
                             {"median_s", p.timing->median},
                             {"min_s", p.timing->minimum},
                             {"spread", p.timing->spread},
                             {"flop_per_s", p.flops / p.timing->median},
                             {"bound_bytes_per_s", p.bytes / p.timing->median},
                             {"share_of_bound", p.bytes / p.timing->median / bandwidth},
                             {"saved_bytes", row.saved_bytes},
                             {"relative_error", row.error}});
    }
  }
  write_file(path, doc.dump(1) + "\n");
}

void plot(const std::string& path, const std::vector<Row>& rows) {
  std::vector<std::string> variants, shapes;
  for (const Row& row : rows) {
    if (std::find(variants.begin(), variants.end(), row.variant) == variants.end())
      variants.push_back(row.variant);
    if (std::find(shapes.begin(), shapes.end(), row.shape) == shapes.end())
      shapes.push_back(row.shape);
  }
  std::ostringstream gp;
  gp << "set terminal pngcairo size 1100,600\nset output '" << with_extension(path, ".png")
     << "'\nset style data histogram\nset style histogram clustered gap 1\n"
        "set style fill solid 0.8\nset grid ytics\nset yrange [0:*]\nset key top left\n"
        "set ylabel 'nanoseconds per token and head'\nset xtics rotate by -20\n$data << EOD\nshape";
  for (const auto& v : variants) gp << " \"" << v << '"';
  gp << "\n";
  for (const auto& shape : shapes) {
    gp << '"' << shape << '"';
    for (const auto& v : variants) {
      const auto it = std::find_if(rows.begin(), rows.end(), [&](const Row& row) {
        return row.shape == shape && row.variant == v;
      });
      if (it == rows.end()) {
        gp << " NaN";
        continue;
      }
      const Timing& t = it->size.tokens == 1 ? it->forward : it->both;
      gp << " "
         << 1e9 * t.median / static_cast<double>(it->size.batch * it->size.tokens * it->size.heads);
    }
    gp << "\n";
  }
  gp << "EOD\nplot for [i=2:" << variants.size() + 1
     << "] $data using i:xtic(1) title columnheader(i)\n";
  write_plot(path, gp.str());
}

}  // namespace

int run_wkv(const WkvOptions& options) {
  std::vector<WkvShape> shapes;
  for (const std::string& text : options.shapes) shapes.push_back(parse_shape(text));
  if (shapes.empty()) shapes = {{1, 512, 12, 64}, {1, 2048, 12, 64}, {8, 512, 12, 64}};
  if (options.list) {
    for (const WkvShape& shape : shapes) std::printf("%s\n", list_wkv(shape).c_str());
    return 0;
  }
  if (options.threads > 0) set_num_threads(options.threads);
  const Environment env = environment();
  std::printf("%s\n", to_string(env).c_str());
  const double bandwidth = copy_bandwidth();
  std::printf(
      "copy bandwidth %.1f GB/s (read + write); median of %d, caches flushed, variants "
      "interleaved\nGFLOP/s count the plain recurrence: 9 N^2 forward, 24 N^2 backward per "
      "token and head;\nGB/s and %% bound: least fp32 traffic, 28 N forward, 52 N backward\n",
      1e-9 * bandwidth, options.repeats);
  std::vector<Row> rows;
  for (const WkvShape& shape : shapes) {
    const std::vector<Row> more = bench_shape(shape, options);
    print_rows(more, bandwidth);
    rows.insert(rows.end(), more.begin(), more.end());
    const auto& chosen = select_wkv("wkv7", Device::kCpu, DType::kF32, shape, "auto");
    std::printf("%s: auto takes %s\n\n", shape_name(shape).c_str(),
                std::string(chosen.name).c_str());
  }
  if (!options.json.empty()) write_json(options.json, rows, env, bandwidth, options.repeats);
  if (!options.plot.empty()) plot(options.plot, rows);
  return 0;
}

}  // namespace rwkv::bench
