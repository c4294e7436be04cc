// Times the kBenchCuda cases on the GPU: forward and backward (all gradients written), bf16 unless
// an argument says f32, medians over CUDA graph replays, with the share of the copy bandwidth that
// is measured first. Not a test: it prints a table.
//   cuda_op_bench [part of the case names] [f32]

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "kernels/core/bf16.h"
#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/memory.h"
#include "kernels/ops/adamw.h"
#include "tests/ops/cuda_harness.h"

namespace rwkv::test {
namespace {

constexpr int kRuns = 15;

/// Median milliseconds of a captured call.
template <class Fn>
double median_ms(Context& ctx, const Fn& fn, bool captured = true) {
  const auto stream = static_cast<cudaStream_t>(ctx.stream());
  fn();  // lazily loads modules and chooses algorithms
  ctx.synchronize("bench");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  if (captured) {
    RWKV_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    fn();
    RWKV_CUDA(cudaStreamEndCapture(stream, &graph));
    RWKV_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  }
  cudaEvent_t start, stop;
  RWKV_CUDA(cudaEventCreate(&start));
  RWKV_CUDA(cudaEventCreate(&stop));
  std::vector<float> ms;
  for (int i = 0; i < kRuns + 3; ++i) {
    RWKV_CUDA(cudaEventRecord(start, stream));
    if (captured)
      RWKV_CUDA(cudaGraphLaunch(exec, stream));
    else
      fn();
    RWKV_CUDA(cudaEventRecord(stop, stream));
    RWKV_CUDA(cudaEventSynchronize(stop));
    float t = 0;
    RWKV_CUDA(cudaEventElapsedTime(&t, start, stop));
    if (i >= 3) ms.push_back(t);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  if (captured) {
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  }
  std::sort(ms.begin(), ms.end());
  return static_cast<double>(ms[ms.size() / 2]);
}

/// Random values: up to 2^20 as the case draws them, repeated.
void fill_on_device(Context& ctx, const cases::Argument& a, const TensorView& view, uint64_t draw) {
  constexpr int64_t kMost = int64_t{1} << 20;
  const int64_t n = view.numel(), some = std::min(n, kMost);
  cases::Argument part = a;
  part.spec = TensorSpec({some}, view.spec.dtype);
  std::vector<uint8_t> host(part.spec.bytes());
  cases::fill_argument(part, Rng(1, draw), TensorView(host.data(), part.spec));
  const auto width = static_cast<int64_t>(dtype_bytes(view.spec.dtype));
  for (int64_t at = 0; at < n; at += some) {
    const TensorSpec piece({std::min(some, n - at)}, view.spec.dtype);
    copy(ctx, TensorView(static_cast<std::byte*>(view.data) + at * width, piece, Device::kCuda),
         TensorView(host.data(), piece));
  }
}

struct Row {
  double ms, bytes, flops;
};

void print(const std::string& name, const Row& r, double copy_rate) {
  const double rate = r.bytes / r.ms * 1e-6;
  std::printf("%-58s %9.1f us %7.0f GB/s %5.1f %%", name.c_str(), r.ms * 1e3, rate,
              100 * rate / copy_rate);
  if (r.flops > 0) std::printf(" %7.1f TFLOP/s", r.flops / r.ms * 1e-9);
  std::printf("\n");
  std::fflush(stdout);
}

void bench_case(Context& ctx, const cases::OpCase& c, double copy_rate) {
  const ShapeCall shapes = c.infer();
  ctx.reserve_workspace(shapes.workspace_bytes);
  size_t bytes = 0;
  const auto need = [&](const TensorSpec& s) { bytes += align_up(s.bytes()); };
  for (const auto& a : c.in) need(a.spec), need(a.spec);
  for (const auto& a : c.param) {
    need(a.spec);
    need({{a.spec.numel()}, DType::kF32});
  }
  for (const auto& s : shapes.out) need(s), need(s);
  for (const auto& s : shapes.saved) need(s);
  Arena arena(Device::kCuda, bytes + (1 << 16), "bench");
  std::vector<TensorView> in, param, out, saved, dout, din, dparam;
  std::vector<Accum> modes;
  for (const auto& a : c.in) {
    in.push_back(arena.take(a.spec, a.name));
    din.push_back(arena.take(a.spec, a.name));
    modes.push_back(a.spec.dtype == DType::kI32 ? Accum::kSkip : Accum::kWrite);
    fill_on_device(ctx, a, in.back(), hash_name(a.name));
  }
  for (const auto& a : c.param) {
    param.push_back(arena.take(a.spec, a.name));
    TensorSpec f32 = a.spec;
    f32.dtype = DType::kF32;
    dparam.push_back(arena.take(f32, a.name));
    fill_on_device(ctx, a, param.back(), hash_name(a.name));
  }
  for (const auto& s : shapes.out) {
    out.push_back(arena.take(s, "out"));
    dout.push_back(arena.take(s, "dout"));
    fill_on_device(ctx, {"dout", s, cases::normal(0, 1)}, dout.back(), out.size());
  }
  for (const auto& s : shapes.saved) saved.push_back(arena.take(s, "saved"));
  const std::vector<Accum> param_modes(param.size(), Accum::kWrite);
  const double forward = median_ms(ctx, [&] {
    run_forward(ctx, *c.op,
                {.in = in, .param = param, .out = out, .saved = saved, .attrs = c.attrs.get()});
  });
  print(c.name + " forward", {forward, c.forward_bytes(), c.forward_flops()}, copy_rate);
  const double backward = median_ms(ctx, [&] {
    run_backward(ctx, *c.op,
                 {.in = in,
                  .param = param,
                  .out = out,
                  .saved = saved,
                  .dout = dout,
                  .din = din,
                  .dparam = dparam,
                  .din_mode = modes,
                  .dparam_mode = param_modes,
                  .attrs = c.attrs.get()});
  });
  print(c.name + " backward", {backward, c.backward_bytes(), c.backward_flops()}, copy_rate);
}

void bench_adamw(Context& ctx, double copy_rate) {
  const int64_t n = int64_t{167} << 20;
  std::vector<AdamWPiece> pieces;
  for (int64_t i = 0; i < n; i += kAdamWPieceElements)
    pieces.push_back({i, std::min(n, i + kAdamWPieceElements), 1.0f, 0.1f});
  const TensorSpec flat({n}), half({n}, DType::kBF16);
  const TensorSpec table_spec({static_cast<int64_t>(pieces.size() * sizeof(AdamWPiece) / 4)},
                              DType::kI32);
  Arena arena(Device::kCuda, 4 * flat.bytes() + half.bytes() + table_spec.bytes() + 8192, "adamw");
  std::vector<TensorView> f;
  for (int k = 0; k < 4; ++k) {
    f.push_back(arena.take(flat, "flat"));
    fill_on_device(ctx, {"flat", flat, k == 2 ? cases::uniform(0, 1) : cases::normal(0, 1)},
                   f.back(), static_cast<uint64_t>(k));
  }
  const TensorView copies = arena.take(half, "copies"), table = arena.take(table_spec, "pieces"),
                   norm = arena.take(TensorSpec({2}), "norm");
  copy(ctx, table, TensorView(pieces.data(), table_spec));
  ctx.reserve_workspace(grad_norm_workspace_bytes(pieces.size()));
  const auto* d_pieces = static_cast<const AdamWPiece*>(table.data);
  auto* d_norm = static_cast<double*>(norm.data);
  const auto elements = static_cast<double>(n);
  print("grad_norm/175M",
        {median_ms(ctx,
                   [&] { grad_norm(ctx, f[3].f32(), d_pieces, pieces.size(), nullptr, d_norm); }),
         4 * elements, 0},
        copy_rate);
  print("adamw/175M",
        {median_ms(ctx,
                   [&] {
                     adamw_update(ctx,
                                  {.master = f[0].f32(),
                                   .m = f[1].f32(),
                                   .v = f[2].f32(),
                                   .grad = f[3].f32(),
                                   .copy = copies.as<BF16>()},
                                  d_pieces, pieces.size(), {.lr = 1e-4, .clip = 1}, d_norm);
                   }),
         30 * elements, 0},
        copy_rate);
}

int bench(const std::string& part, bool f32) {
  Context ctx(Device::kCuda);
  const TensorSpec big({int64_t{1} << 30}, DType::kBF16);
  double copy_rate = 0;
  {
    Arena arena(Device::kCuda, 2 * big.bytes(), "copy");
    const TensorView from = arena.take(big, "from"), to = arena.take(big, "to");
    fill_on_device(ctx, {"big", big, cases::normal(0, 1)}, from, 1);
    copy_rate = 2 * static_cast<double>(big.bytes()) /
                median_ms(
                    ctx, [&] { copy(ctx, to, from); }, false) *
                1e-6;
  }
  std::printf("copy of 2 GiB: %.0f GB/s read and written\n", copy_rate);
  for (const auto& one : cases::all_cases()) {
    if (one.use != cases::Use::kBenchCuda || one.name.find(part) == std::string::npos) continue;
    bench_case(ctx, f32 ? one : cases::in_bf16(one), copy_rate);
  }
  if (std::string("adamw").find(part) != std::string::npos) bench_adamw(ctx, copy_rate);
  return 0;
}

}  // namespace
}  // namespace rwkv::test

int main(int argc, char** argv) {
  std::string part;
  bool f32 = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "f32") == 0)
      f32 = true;
    else
      part = argv[i];
  }
  try {
    return rwkv::test::bench(part, f32);
  } catch (const rwkv::Error& e) {
    std::fprintf(stderr, "cuda_op_bench: %s\n", e.what());
    return e.exit_code();
  }
}
