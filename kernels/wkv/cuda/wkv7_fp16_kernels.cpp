#include "kernels/core/cuda/cuda_state.h"
#include "kernels/wkv/cuda/wkv7_fp16.h"
#include "kernels/wkv/cuda/wkv7_kernels.h"

namespace rwkv::cuda {
namespace {

constexpr int kHeadSizes[] = {64};

Wkv7Shape call_shape(const OpCall& c) {
  const TensorSpec& r = c.in[0].spec;
  return {static_cast<int>(r[0]), static_cast<int>(r[1]), static_cast<int>(r[2] / 64), 64, 1};
}

cudaStream_t stream_of(Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream());
}

template <bool kDithered, DType Io>
Wkv7Fp16Kind kind_of(const OpCall& c) {
  const auto& attrs = c.attr<Wkv7Attrs>();
  return {kDithered, Io == DType::kF32, attrs.state_scale, attrs.row_exponents};
}

template <bool kDithered, DType Io>
void forward(Context& ctx, const OpCall& c) {
  const bool has_state = c.in.size() > 6, counted = c.in.size() > 7;
  Wkv7Fp16Forward io{};
  io.r = c.in[0].data;
  io.w = c.in[1].data;
  io.k = c.in[2].data;
  io.v = c.in[3].data;
  io.a = c.in[4].data;
  io.b = c.in[5].data;
  io.y = c.out[0].data;
  if (has_state) {
    io.state_f16 = c.in[6].spec.dtype == DType::kF16;
    io.s0 = c.in[6].data;
    io.s_out = c.out[1].data;
  }
  if (counted) {
    io.elapsed = c.in[7].as<int32_t>();
    io.elapsed_out = c.out[2].as<int32_t>();
  }
  if (c.in.size() > 8) {
    io.exponent = c.in[8].as<int8_t>();
    io.exponent_out = c.out[3].as<int8_t>();
  }
  io.saved = c.saved.empty() ? nullptr : c.saved[0].data;
  const Wkv7Shape s = call_shape(c);
  const bool step = s.tokens == 1 && io.state_f16 && io.saved == nullptr;
  RWKV_CUDA((step ? wkv7_fp16_step : wkv7_fp16_forward)(s, kind_of<kDithered, Io>(c), io,
                                                        stream_of(ctx)));
  RWKV_LAUNCHED(step ? "wkv7 fp16 step" : "wkv7 fp16 forward", stream_of(ctx));
}

template <bool kDithered, DType Io>
void backward(Context& ctx, const OpCall& c) {
  const bool has_state = c.in.size() > 6;
  Wkv7Backward io{};
  io.r = c.in[0].data;
  io.w = c.in[1].data;
  io.k = c.in[2].data;
  io.v = c.in[3].data;
  io.a = c.in[4].data;
  io.b = c.in[5].data;
  io.dy = c.dout[0].data;
  io.has_s0 = has_state;
  io.ds_out = has_state ? c.dout[1].f32() : nullptr;
  void** const vectors[] = {&io.dr, &io.dw, &io.dk, &io.dv, &io.da, &io.db};
  for (size_t i = 0; i < c.in.size() && i < 7; ++i) {
    if (c.din_mode[i] == Accum::kSkip) continue;
    if (c.din_mode[i] == Accum::kAdd) io.add |= 1u << i;
    if (i < 6)
      *vectors[i] = c.din[i].data;
    else
      io.ds0 = c.din[i].f32();
  }
  io.saved = c.saved[0].data;
  RWKV_CUDA(wkv7_fp16_backward(call_shape(c), kind_of<kDithered, Io>(c), io, stream_of(ctx)));
  RWKV_LAUNCHED("wkv7 fp16 backward", stream_of(ctx));
}

size_t saved_bytes(const WkvShape& s) {
  return wkv7_fp16_saved_bytes({static_cast<int>(s.batch), static_cast<int>(s.tokens),
                                static_cast<int>(s.heads), static_cast<int>(s.head_size), 1});
}

size_t no_workspace(const WkvShape&) {
  return 0;
}

template <bool kDithered, DType Io>
constexpr WkvKernel kernel(std::string_view name, std::string_view note) {
  return {.name = name,
          .op = "wkv7",
          .family = kDithered ? "fp16-dithered" : "fp16-plain",
          .device = Device::kCuda,
          .io = Io,
          .state = DType::kF16,
          .min_sm = 90,
          .head_sizes = kHeadSizes,
          .saved_bytes = saved_bytes,
          .workspace_bytes = no_workspace,
          .forward = forward<kDithered, Io>,
          .backward = backward<kDithered, Io>,
          .step = forward<kDithered, Io>,
          .note = note};
}

constexpr std::string_view kDitheredNote =
    "binary16 state, dithered decays, the bits of the CPU's; only when asked for";
constexpr std::string_view kPlainNote =
    "binary16 state without dither, for comparison; only when asked for";

}  // namespace

constinit const WkvKernel kWkv7Fp16DitheredBF16 =
    kernel<true, DType::kBF16>("wkv7.cuda.fp16-dithered.bf16", kDitheredNote);
constinit const WkvKernel kWkv7Fp16DitheredF32 =
    kernel<true, DType::kF32>("wkv7.cuda.fp16-dithered.f32", kDitheredNote);
constinit const WkvKernel kWkv7Fp16PlainBF16 =
    kernel<false, DType::kBF16>("wkv7.cuda.fp16-plain.bf16", kPlainNote);
constinit const WkvKernel kWkv7Fp16PlainF32 =
    kernel<false, DType::kF32>("wkv7.cuda.fp16-plain.f32", kPlainNote);

}  // namespace rwkv::cuda
