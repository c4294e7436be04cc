#include "kernels/wkv/cuda/wkv4_kernels.h"

#include <cmath>
#include <vector>

#include "kernels/core/cuda/cuda_state.h"
#include "kernels/core/memory.h"
#include "kernels/wkv/cuda/wkv4_cuda.h"
#include "kernels/wkv/wkv4_range.h"

namespace rwkv::cuda {
namespace {

WkvShape call_shape(const OpCall& c) {
  const TensorSpec& k = c.in[0].spec;
  return {k[0], k[1], k[2], 1, c.in.size() == 5};
}

cudaStream_t stream_of(Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream());
}

template <DType Io>
Wkv4Shape shape_of(const WkvShape& s) {
  return {static_cast<int>(s.batch), static_cast<int>(s.tokens),
          static_cast<int>(s.heads * s.head_size), Io == DType::kF32};
}

template <DType Io>
struct Serial {
  static constexpr DType kIo = Io;
  static Wkv4Shape shape(const WkvShape& s) { return shape_of<Io>(s); }
  static size_t saved(const WkvShape& s) { return wkv4_serial_saved_bytes(shape(s)); }
  static size_t scratch(const WkvShape& s) { return wkv4_serial_workspace_bytes(shape(s)); }
  static constexpr auto kForward = wkv4_serial_forward;
  static constexpr auto kBackward = wkv4_serial_backward;
};

template <DType Io, bool kSums>
struct Scan {
  static constexpr DType kIo = Io;
  static Wkv4Shape shape(const WkvShape& s) {
    Wkv4Shape shape = shape_of<Io>(s);
    shape.sums = kSums;
    wkv4_scan_plan(shape);
    return shape;
  }
  static size_t saved(const WkvShape& s) { return wkv4_scan_saved_bytes(shape(s)); }
  static size_t scratch(const WkvShape& s) { return wkv4_scan_workspace_bytes(shape(s)); }
  static constexpr auto kForward = wkv4_scan_forward;
  static constexpr auto kBackward = wkv4_scan_backward;
};

template <DType Io>
struct Naive {
  static constexpr DType kIo = Io;
  static Wkv4Shape shape(const WkvShape& s) { return shape_of<Io>(s); }
  static size_t saved(const WkvShape& s) { return wkv4_naive_saved_bytes(shape(s)); }
  static size_t scratch(const WkvShape& s) { return wkv4_naive_workspace_bytes(shape(s)); }
  static constexpr auto kForward = wkv4_naive_forward;
  static constexpr auto kBackward = wkv4_naive_backward;
};

Wkv4Forward forward_of(const OpCall& c, const WkvShape& s) {
  Wkv4Forward io{};
  io.k = c.in[0].data;
  io.v = c.in[1].data;
  io.tau = c.param[0].f32();
  io.u = c.param[1].f32();
  if (s.has_state) {
    io.a0 = c.in[2].f32();
    io.b0 = c.in[3].f32();
    io.p0 = c.in[4].f32();
    io.a_out = c.out[1].f32();
    io.b_out = c.out[2].f32();
    io.p_out = c.out[3].f32();
  }
  io.y = c.out[0].data;
  io.saved = c.saved.empty() ? nullptr : c.saved[0].f32();
  return io;
}

template <class V>
void forward(Context& ctx, const OpCall& c) {
  const WkvShape s = call_shape(c);
  Wkv4Forward io = forward_of(c, s);
  io.workspace = ctx.workspace(V::scratch(s));
  RWKV_CUDA(V::kForward(V::shape(s), io, stream_of(ctx)));
  RWKV_LAUNCHED("wkv4 forward", stream_of(ctx));
}

template <class V>
void backward(Context& ctx, const OpCall& c) {
  const WkvShape s = call_shape(c);
  Wkv4Backward io{};
  io.k = c.in[0].data;
  io.v = c.in[1].data;
  io.dy = c.dout[0].data;
  io.tau = c.param[0].f32();
  io.u = c.param[1].f32();
  const auto wanted = [&](const TensorView& view, Accum mode, unsigned bit) {
    if (mode == Accum::kAdd) io.add |= 1u << bit;
    return mode == Accum::kSkip ? TensorView() : view;
  };
  io.dk = wanted(c.din[0], c.din_mode[0], 0).data;
  io.dv = wanted(c.din[1], c.din_mode[1], 1).data;
  if (s.has_state) {
    io.a0 = c.in[2].f32();
    io.b0 = c.in[3].f32();
    io.p0 = c.in[4].f32();
    io.da_out = c.dout[1].f32();
    io.db_out = c.dout[2].f32();
    io.p_out = c.out[3].f32();
    io.da0 = wanted(c.din[2], c.din_mode[2], 2).f32();
    io.db0 = wanted(c.din[3], c.din_mode[3], 3).f32();
    io.dp0 = wanted(c.din[4], c.din_mode[4], 4).f32();
  }
  io.dtau = wanted(c.dparam[0], c.dparam_mode[0], 5).f32();
  io.du = wanted(c.dparam[1], c.dparam_mode[1], 6).f32();
  io.saved = c.saved[0].f32();
  io.workspace = ctx.workspace(V::scratch(s));
  RWKV_CUDA(V::kBackward(V::shape(s), io, stream_of(ctx)));
  RWKV_LAUNCHED("wkv4 backward", stream_of(ctx));
}

/// Numbers on the host.
std::vector<float> fetch(Context& ctx, float* from, int64_t n) {
  std::vector<float> to(static_cast<size_t>(n));
  const TensorSpec spec({n});
  copy(ctx, TensorView(to.data(), spec), TensorView(from, spec, Device::kCuda));
  return to;
}

/// cumsum-naive: throws ConfigError if the exponents leave the range of f32. A single token needs
/// no sums: the recurrence gives y = v exactly.
template <DType Io>
void naive_forward(Context& ctx, const OpCall& c) {
  using V = Naive<Io>;
  const WkvShape s = call_shape(c);
  if (s.tokens == 1) return forward<Serial<Io>>(ctx, c);
  RWKV_CHECK(!ctx.recording(), ConfigError,
             "wkv4 by cumsum-naive: the range of its inputs is checked on the host in every call, "
             "which a launch graph cannot hold; set kernels.launch_graphs to false, or use cumsum, "
             "scan or serial");
  Wkv4Forward io = forward_of(c, s);
  io.workspace = ctx.workspace(V::scratch(s));
  RWKV_CUDA(wkv4_naive_widths(V::shape(s), io, stream_of(ctx)));
  const auto widths = fetch(ctx, static_cast<float*>(io.workspace), s.batch * s.heads);
  const auto tau = fetch(ctx, c.param[0].f32(), s.heads), u = fetch(ctx, c.param[1].f32(), s.heads);
  ctx.synchronize("range of cumsum-naive");
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t i = 0; i < s.heads; ++i) {
      const auto at = static_cast<size_t>(i);
      wkv4_check_naive_range(b, i, s.tokens, widths[static_cast<size_t>(b * s.heads + i)],
                             -std::exp(tau[at]), u[at]);
    }
  RWKV_CUDA(V::kForward(V::shape(s), io, stream_of(ctx)));
  RWKV_LAUNCHED("wkv4 forward", stream_of(ctx));
}

template <DType Io>
void naive_backward(Context& ctx, const OpCall& c) {
  if (call_shape(c).tokens == 1) return backward<Serial<Io>>(ctx, c);
  backward<Naive<Io>>(ctx, c);
}

/// cumsum: the counts that the forward left in the saved rows.
double replaced_share(Context& ctx, const OpCall& c) {
  const TensorView& saved = c.saved[0];
  std::vector<float> rows(static_cast<size_t>(saved.numel()));
  copy(ctx, TensorView(rows.data(), saved.spec), saved);
  ctx.synchronize("share of pieces that left the range of cumulative sums");
  const WkvShape s = call_shape(c);
  const auto channels = static_cast<size_t>(s.heads);
  double sum = 0;
  for (size_t segment = 0; segment < rows.size(); segment += 4 * channels)
    for (size_t i = 0; i < channels; ++i)
      sum += static_cast<double>(rows[segment + 3 * channels + i]);
  return sum / static_cast<double>(s.batch * s.tokens * s.heads);
}

template <class V>
constexpr WkvKernel kernel(std::string_view name, std::string_view family, std::string_view note,
                           double (*share)(Context&, const OpCall&) = nullptr) {
  return {.name = name,
          .op = "wkv4",
          .family = family,
          .device = Device::kCuda,
          .io = V::kIo,
          .state = DType::kF32,
          .min_sm = 90,
          .t_multiple = 1,
          .min_tokens = 1,
          .deterministic = true,
          .head_sizes = {},
          .saved_bytes = V::saved,
          .workspace_bytes = V::scratch,
          .forward = forward<V>,
          .backward = backward<V>,
          .step = forward<Serial<V::kIo>>,  // the state may stay where it is
          .replaced_share = share,
          .note = note};
}

template <DType Io>
constexpr WkvKernel naive_kernel(std::string_view name) {
  WkvKernel k = kernel<Naive<Io>>(name, "cumsum-naive",
                                  "for comparison: one cumulative sum; refuses what leaves the "
                                  "range of f32, waits for the device, not in launch graphs");
  k.forward = naive_forward<Io>;
  k.backward = naive_backward<Io>;
  return k;
}

}  // namespace

constinit const WkvKernel kWkv4SerialBF16 = kernel<Serial<DType::kBF16>>(
    "wkv4.cuda.serial.bf16", "serial", "a thread per channel; decoding");
constinit const WkvKernel kWkv4SerialF32 =
    kernel<Serial<DType::kF32>>("wkv4.cuda.serial.f32", "serial", "a thread per channel; decoding");
constinit const WkvKernel kWkv4ScanBF16 = kernel<Scan<DType::kBF16, false>>(
    "wkv4.cuda.scan.bf16", "scan", "threads along channels and time");
constinit const WkvKernel kWkv4ScanF32 = kernel<Scan<DType::kF32, false>>(
    "wkv4.cuda.scan.f32", "scan", "threads along channels and time");
constinit const WkvKernel kWkv4CumsumBF16 = kernel<Scan<DType::kBF16, true>>(
    "wkv4.cuda.cumsum.bf16", "cumsum", "scan with cumulative sums of 8 tokens inside",
    replaced_share);
constinit const WkvKernel kWkv4CumsumF32 =
    kernel<Scan<DType::kF32, true>>("wkv4.cuda.cumsum.f32", "cumsum",
                                    "scan with cumulative sums of 8 tokens inside", replaced_share);
constinit const WkvKernel kWkv4CumsumNaiveBF16 =
    naive_kernel<DType::kBF16>("wkv4.cuda.cumsum-naive.bf16");
constinit const WkvKernel kWkv4CumsumNaiveF32 =
    naive_kernel<DType::kF32>("wkv4.cuda.cumsum-naive.f32");

}  // namespace rwkv::cuda
