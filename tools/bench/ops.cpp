#include "tools/bench/ops.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>

#include "kernels/cases/case.h"
#include "kernels/core/gemm.h"
#include "kernels/core/memory.h"
#include "kernels/core/parallel.h"
#include "kernels/cpu/eigen_reference.h"
#include "kernels/ops/adamw.h"
#include "tools/bench/cuda_timing.h"
#include "tools/bench/report.h"

namespace rwkv::bench {
namespace {

struct Row {
  std::string name, op, phase;
  DType dtype = DType::kF32;
  Timing time;
  double bytes = 0, flops = 0;
};

/// The rates that rows are compared with.
struct Ceilings {
  double copy_bytes_per_s = 0, gemm_flops_per_s = 0;
};

/// Operands of a case on the context's device.
class CaseRun {
 public:
  CaseRun(Context& ctx, const cases::OpCase& c) : ctx_(ctx), case_(c), shapes_(c.infer()) {
    ctx.reserve_workspace(shapes_.workspace_bytes);
    size_t bytes = 0;
    const auto need = [&](const TensorSpec& s, size_t times) {
      bytes += times * align_up(s.bytes());
    };
    const auto f32 = [](TensorSpec s) {
      s.dtype = DType::kF32;
      return s;
    };
    for (const auto& a : c.in) need(a.spec, 2);
    for (const auto& a : c.param) need(a.spec, 1), need(f32(a.spec), 1);
    for (const auto& s : shapes_.out) need(s, 2);
    for (const auto& s : shapes_.saved) need(s, 1);
    arena_ = Arena(ctx.device(), bytes, "op benchmark");
    for (const auto& a : c.in) {
      in_.push_back(take_filled(a));
      din_.push_back(arena_.take(a.spec, a.name));
      modes_.push_back(a.spec.dtype == DType::kI32 ? Accum::kSkip : Accum::kWrite);
    }
    for (const auto& a : c.param) {
      param_.push_back(take_filled(a));
      dparam_.push_back(arena_.take(f32(a.spec), a.name));
    }
    param_modes_.assign(param_.size(), Accum::kWrite);
    for (const auto& s : shapes_.out) {
      out_.push_back(arena_.take(s, "out"));
      dout_.push_back(take_filled({"dout", s, cases::normal(0, 1)}));
    }
    for (const auto& s : shapes_.saved) saved_.push_back(arena_.take(s, "saved"));
  }

  void forward() {
    run_forward(
        ctx_, *case_.op,
        {.in = in_, .param = param_, .out = out_, .saved = saved_, .attrs = case_.attrs.get()});
  }
  void backward() {
    run_backward(ctx_, *case_.op,
                 {.in = in_,
                  .param = param_,
                  .out = out_,
                  .saved = saved_,
                  .dout = dout_,
                  .din = din_,
                  .dparam = dparam_,
                  .din_mode = modes_,
                  .dparam_mode = param_modes_,
                  .attrs = case_.attrs.get()});
  }

  /// The gradients of parameters are, as far as their first million elements: other numbers than
  /// those of training need not take the same time.
  bool finite() {
    for (const TensorView& g : dparam_) {
      std::vector<float> some(static_cast<size_t>(std::min(g.numel(), int64_t{1} << 20)));
      const TensorSpec part({std::ssize(some)});
      copy(ctx_, TensorView(some.data(), part), TensorView(g.data, part, g.device));
      ctx_.synchronize("gradients");
      if (!std::all_of(some.begin(), some.end(), [](float x) { return std::isfinite(x); }))
        return false;
    }
    return true;
  }

 private:
  /// Values as the case draws them, up to 2^20 of them, repeated.
  TensorView take_filled(const cases::Argument& a) {
    const TensorView view = arena_.take(a.spec, a.name);
    cases::Argument part = a;
    const int64_t some = std::min(view.numel(), int64_t{1} << 20);
    // Fills may look at dimensions: a whole number of rows.
    const int64_t last = a.spec.last();
    part.spec = TensorSpec({std::max<int64_t>(some / last, 1), last}, a.spec.dtype);
    std::vector<std::byte> host(part.spec.bytes());
    const TensorView from(host.data(), part.spec);
    cases::fill_argument(part, Rng(1, hash_name(case_.name + a.name)), from);
    if (view.device == Device::kCuda) {
      cuda_fill_repeated(ctx_, view, from);
    } else {
      auto* const to = static_cast<std::byte*>(view.data);
      for (size_t at = 0; at < view.bytes(); at += host.size())
        std::copy_n(host.data(), std::min(host.size(), view.bytes() - at), to + at);
    }
    return view;
  }

  Context& ctx_;
  const cases::OpCase& case_;
  ShapeCall shapes_;
  Arena arena_;
  std::vector<TensorView> in_, param_, out_, saved_, dout_, din_, dparam_;
  std::vector<Accum> modes_, param_modes_;
};

/// `before`, if given, runs ahead of every call and is not timed.
Timing time_call(Context& ctx, int repeats, const std::function<void()>& call,
                 const std::function<void()>& before = {}) {
  constexpr int kWarmup = 3;
  constexpr double kDelay = 100e-6;
  if (ctx.device() == Device::kCuda) {
    if (before) before();
    measure_gemm_algorithms(ctx, true);  // as training does
    call();
    measure_gemm_algorithms(ctx, false);
    if (before) return cuda_time(ctx, repeats, call, kWarmup, kDelay, before);
    // Short calls are timed in groups, as the events themselves take about a microsecond.
    const double one = cuda_time(ctx, 1, call).median;
    const int group = static_cast<int>(std::clamp(100e-6 / one, 1.0, 8.0));
    Timing t = cuda_time(ctx, repeats, [&] {
      for (int i = 0; i < group; ++i) call();
    });
    t.median /= group;
    t.minimum /= group;
    return t;
  }
  CacheFlusher flusher;
  if (before) before();
  call();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    if (before) before();
    flusher.flush();
    const double start = now_seconds();
    call();
    seconds.push_back(now_seconds() - start);
  }
  return summarize(std::move(seconds));
}

double bound_seconds(const Row& r, const Ceilings& c) {
  return std::max(r.bytes / c.copy_bytes_per_s, r.flops / c.gemm_flops_per_s);
}

void print_row(const Row& r, const Ceilings& c, bool gpu) {
  const double t = r.time.median;
  std::printf("%-58s %-8s %10.1f %6.1f%% %8.1f %7.1f%%", r.name.c_str(), r.phase.c_str(), 1e6 * t,
              100 * r.time.spread, 1e-9 * r.bytes / t, 100 * r.bytes / t / c.copy_bytes_per_s);
  if (r.flops > 0)
    std::printf(" %9.1f %7.1f%%", (gpu ? 1e-12 : 1e-9) * r.flops / t,
                100 * r.flops / t / c.gemm_flops_per_s);
  else
    std::printf(" %9s %8s", "-", "-");
  std::printf(" %7.1f%%\n", 100 * bound_seconds(r, c) / t);
  std::fflush(stdout);
}

/// The gradient norm and AdamW over n parameters.
std::vector<Row> bench_adamw(Context& ctx, int repeats, int64_t n) {
  std::vector<AdamWPiece> pieces;
  for (int64_t i = 0; i < n; i += kAdamWPieceElements)
    pieces.push_back({i, std::min(n, i + kAdamWPieceElements), 1.0f, 0.1f});
  const TensorSpec flat({n}), half({n}, DType::kBF16);
  const TensorSpec table_spec({static_cast<int64_t>(pieces.size() * sizeof(AdamWPiece) / 4)},
                              DType::kI32);
  Arena arena(Device::kCuda, 4 * flat.bytes() + half.bytes() + table_spec.bytes() + 8192, "adamw");
  const TensorView master = arena.take(flat, "master"), m = arena.take(flat, "m"),
                   v = arena.take(flat, "v"), grad = arena.take(flat, "grad"),
                   copies = arena.take(half, "copies"), table = arena.take(table_spec, "pieces"),
                   norm = arena.take(TensorSpec({2}), "norm");
  cuda_fill_normal(ctx, master, 0, 1, 1);
  cuda_fill_normal(ctx, m, 0, 1, 2);
  cuda_fill_normal(ctx, v, 5, 0.5, 3);
  cuda_fill_normal(ctx, grad, 0, 1, 4);
  copy(ctx, table, TensorView(pieces.data(), table_spec));
  ctx.synchronize("pieces");
  ctx.reserve_workspace(grad_norm_workspace_bytes(pieces.size()));
  const auto* d_pieces = static_cast<const AdamWPiece*>(table.data);
  auto* d_norm = static_cast<double*>(norm.data);
  const auto elements = static_cast<double>(n);
  const auto row = [&](const char* name, const Timing& t, double bytes) {
    return Row{str(name, "/n", n), name, "update", DType::kF32, t, bytes * elements, 0};
  };
  const Timing norm_time = time_call(
      ctx, repeats, [&] { grad_norm(ctx, grad.f32(), d_pieces, pieces.size(), nullptr, d_norm); });
  const Timing update_time = time_call(ctx, repeats, [&] {
    adamw_update(ctx,
                 {.master = master.f32(),
                  .m = m.f32(),
                  .v = v.f32(),
                  .grad = grad.f32(),
                  .copy = copies.as<BF16>()},
                 d_pieces, pieces.size(), {.lr = 1e-4, .clip = 1}, d_norm);
  });
  return {row("grad_norm", norm_time, 4), row("adamw", update_time, 30)};
}

bool wanted(const OpsOptions& o, const std::string& name) {
  return o.ops.empty() || std::any_of(o.ops.begin(), o.ops.end(), [&](const std::string& part) {
           return name.find(part) != std::string::npos;
         });
}

void write_json(const std::string& path, const std::vector<Row>& rows,
                const std::vector<std::string>& failures, const Ceilings& c, const Environment& env,
                const OpsOptions& o) {
  nlohmann::ordered_json head{{"benchmark", "ops"},
                              {"date", today()},
                              {"commit", env.commit},
                              {"kernel_hash", env.kernel_hash}};
  if (env.device.empty()) {
    head["cpu"] = env.cpu;
    head["threads"] = env.threads;
  } else {
    head["device"] = env.device;
  }
  head["repeats"] = o.repeats;
  head["copy_bytes_per_second"] = c.copy_bytes_per_s;
  head["gemm_flop_per_second"] = c.gemm_flops_per_s;
  head["failures"] = failures;
  std::string text = head.dump(1);
  text.resize(text.size() - 2);  // "\n}"
  text += ",\n \"rows\": [";
  const char* comma = "\n  ";
  for (const Row& r : rows) {
    const double t = r.time.median;
    const nlohmann::ordered_json item{{"case", r.name},
                                      {"op", r.op},
                                      {"dtype", dtype_name(r.dtype)},
                                      {"phase", r.phase},
                                      {"median_s", t},
                                      {"min_s", r.time.minimum},
                                      {"spread", r.time.spread},
                                      {"bytes_per_s", r.bytes / t},
                                      {"flop_per_s", r.flops / t},
                                      {"share_of_bound", bound_seconds(r, c) / t}};
    text += str(comma, item.dump());
    comma = ",\n  ";
  }
  write_file(path, text + "\n ]\n}\n");
}

}  // namespace

int run_ops(const OpsOptions& o) {
  RWKV_CHECK(o.device == "cpu" || o.device == "cuda", ConfigError, "--device: found '", o.device,
             "', expected cpu or cuda");
  const bool gpu = o.device == "cuda";
  const Device device = gpu ? Device::kCuda : Device::kCpu;
  RWKV_CHECK(o.dtype.empty() || o.dtype == "f32" || o.dtype == "bf16", ConfigError,
             "--dtype: found '", o.dtype, "', expected f32 or bf16");
  RWKV_CHECK(gpu || o.dtype != "bf16", ConfigError,
             "--dtype bf16: the CPU computes in f32 only; use --device cuda");
  RWKV_CHECK(o.width % o.head_size == 0, ConfigError, "--width ", o.width,
             " is not a whole number of heads of size ", o.head_size, "; change --head-size");
  const DType dtype = gpu && o.dtype != "f32" ? DType::kBF16 : DType::kF32;
  if (o.threads > 0) set_num_threads(o.threads);
  cases::BenchShape shape = cases::kBenchShapes[gpu ? 1 : 0];
  if (o.batch > 0) shape.batch = o.batch;
  if (o.tokens > 0) shape.tokens = o.tokens;
  shape.width = o.width;
  shape.head_size = o.head_size;
  shape.vocab = o.vocab;

  Context ctx(device);
  const Environment env = environment(device);
  const Ceilings ceilings =
      gpu ? Ceilings{cuda_copy_bandwidth(ctx), cuda_gemm_flops(ctx, dtype, 8192, 8192, 8192)}
          : Ceilings{copy_bandwidth(), 1e9 * cpu::eigen_gemm_gflops(1024, num_threads(), 3)};
  std::printf("%s\n", to_string(env).c_str());
  std::printf(
      "%s; copy %.1f GB/s (read + write), product of %s %.1f %s; medians of %d, %s\n"
      "bytes: every operand once; %% bound: the larger of both lower bounds over the time\n"
      "%-58s %-8s %10s %7s %8s %8s %9s %8s %8s\n",
      std::string(dtype_name(dtype)).c_str(), 1e-9 * ceilings.copy_bytes_per_s,
      gpu ? "8192^3" : "1024^3 (Eigen)", (gpu ? 1e-12 : 1e-9) * ceilings.gemm_flops_per_s,
      gpu ? "TFLOP/s" : "GFLOP/s", o.repeats,
      gpu ? "GPU events, back to back, caches not flushed" : "caches flushed", "case", "phase",
      "median us", "spread", "GB/s", "of copy", gpu ? "TFLOP/s" : "GFLOP/s", "of prod.", "% bound");
  std::vector<Row> rows;
  std::vector<std::string> failures;
  const auto keep = [&](Row row) {
    print_row(row, ceilings, gpu);
    rows.push_back(std::move(row));
  };
  for (const auto& plain : cases::all_cases(std::span(&shape, 1))) {
    if (plain.use == cases::Use::kTest || !wanted(o, plain.name)) continue;
    const cases::OpCase c = dtype == DType::kBF16 ? cases::in_bf16(plain) : plain;
    const std::string op(c.op->name);
    try {
      CaseRun run(ctx, c);
      keep({c.name, op, "forward", dtype, time_call(ctx, o.repeats, [&] { run.forward(); }),
            c.forward_bytes(), c.forward_flops()});
      const auto again = [&] { run.forward(); };
      keep({c.name, op, "backward", dtype,
            time_call(
                ctx, o.repeats, [&] { run.backward(); },
                c.op->backward_uses_up_saved ? again : std::function<void()>()),
            c.backward_bytes(), c.backward_flops()});
      if (!run.finite()) {
        std::fprintf(stderr, "rwkv-bench: %s: gradients are not finite\n", c.name.c_str());
        failures.push_back(c.name + ": gradients are not finite");
      }
    } catch (const DeviceError& e) {  // too large for the memory, for instance: on with the next
      std::fprintf(stderr, "rwkv-bench: %s: %s\n", c.name.c_str(), e.what());
      failures.push_back(str(c.name, ": ", e.what()));
    }
  }
  if (gpu && wanted(o, "grad_norm adamw"))
    for (Row& row : bench_adamw(ctx, o.repeats, int64_t{167} << 20)) keep(std::move(row));
  RWKV_CHECK(!rows.empty() || !failures.empty(), ConfigError, "--op: no case has '", o.ops[0],
             "' in its name");
  if (!o.json.empty()) write_json(o.json, rows, failures, ceilings, env, o);
  return failures.empty() ? 0 : 1;
}

}  // namespace rwkv::bench
