#include "kernels/wkv/cuda/wkv7_kernels.h"

#include "kernels/core/cuda/cuda_state.h"
#include "kernels/wkv/cuda/wkv7_cuda.h"

namespace rwkv::cuda {
namespace {

Wkv7Shape shape_of(const WkvShape& s) {
  return {static_cast<int>(s.batch), static_cast<int>(s.tokens), static_cast<int>(s.heads),
          static_cast<int>(s.head_size), 1};
}

WkvShape call_shape(const OpCall& c) {
  const TensorSpec& r = c.in[0].spec;
  const int64_t n = c.attr<Wkv7Attrs>().head_size;
  return {r[0], r[1], r[2] / n, n, c.in.size() == 7};
}

cudaStream_t stream_of(Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream());
}

/// One block walks a head; or, with kScan, sequences are cut into segments that run side by side.
template <bool kScan>
struct Chunk {
  static constexpr DType kIo = DType::kBF16;
  static constexpr int64_t kMinTokens = kScan ? kWkv7ScanTokens : 1;
  static Wkv7Shape cut(const WkvShape& s) {
    Wkv7Shape shape = shape_of(s);
    if (kScan) shape.segments = wkv7_scan_segments(shape, kWkv7PlannedProcessors);
    return shape;
  }
  static size_t saved(const WkvShape& s) { return wkv7_chunk_saved_bytes(cut(s)); }
  static size_t scratch(const WkvShape& s) { return wkv7_chunk_workspace_bytes(cut(s)); }
  static cudaError_t forward(const WkvShape& s, const Wkv7Forward& io, cudaStream_t stream) {
    return wkv7_chunk_forward(cut(s), io, stream);
  }
  static cudaError_t backward(const WkvShape& s, const Wkv7Backward& io, cudaStream_t stream) {
    return wkv7_chunk_backward(cut(s), io, stream);
  }
};

template <DType Io>
struct Serial {
  static constexpr DType kIo = Io;
  static constexpr int64_t kMinTokens = 1;
  static size_t saved(const WkvShape& s) {
    return wkv7_serial_saved_bytes(shape_of(s), Io == DType::kF32);
  }
  static size_t scratch(const WkvShape&) { return 0; }
  static cudaError_t forward(const WkvShape& s, const Wkv7Forward& io, cudaStream_t stream) {
    return wkv7_serial_forward(shape_of(s), io, Io == DType::kF32, stream);
  }
  static cudaError_t backward(const WkvShape& s, const Wkv7Backward& io, cudaStream_t stream) {
    return wkv7_serial_backward(shape_of(s), io, Io == DType::kF32, stream);
  }
};

template <class V>
void forward(Context& ctx, const OpCall& c) {
  const WkvShape s = call_shape(c);
  Wkv7Forward io{};
  io.r = c.in[0].data;
  io.w = c.in[1].data;
  io.k = c.in[2].data;
  io.v = c.in[3].data;
  io.a = c.in[4].data;
  io.b = c.in[5].data;
  io.s0 = s.has_state ? c.in[6].f32() : nullptr;
  io.y = c.out[0].data;
  io.s_out = s.has_state ? c.out[1].f32() : nullptr;
  io.saved = c.saved.empty() ? nullptr : c.saved[0].data;
  io.workspace = ctx.workspace(V::scratch(s));
  RWKV_CUDA(V::forward(s, io, stream_of(ctx)));
  RWKV_LAUNCHED("wkv7 forward", stream_of(ctx));
}

template <class V>
void backward(Context& ctx, const OpCall& c) {
  const WkvShape s = call_shape(c);
  Wkv7Backward io{};
  io.r = c.in[0].data;
  io.w = c.in[1].data;
  io.k = c.in[2].data;
  io.v = c.in[3].data;
  io.a = c.in[4].data;
  io.b = c.in[5].data;
  io.dy = c.dout[0].data;
  io.has_s0 = s.has_state;
  io.ds_out = s.has_state ? c.dout[1].f32() : nullptr;
  void** const vectors[] = {&io.dr, &io.dw, &io.dk, &io.dv, &io.da, &io.db};
  for (size_t i = 0; i < c.in.size(); ++i) {
    if (c.din_mode[i] == Accum::kSkip) continue;
    if (c.din_mode[i] == Accum::kAdd) io.add |= 1u << i;
    if (i < 6)
      *vectors[i] = c.din[i].data;
    else
      io.ds0 = c.din[i].f32();
  }
  io.saved = c.saved[0].data;
  io.workspace = ctx.workspace(V::scratch(s));
  RWKV_CUDA(V::backward(s, io, stream_of(ctx)));
  RWKV_LAUNCHED("wkv7 backward", stream_of(ctx));
}

template <class V>
constexpr WkvKernel kernel(std::string_view name, std::string_view family, std::string_view note) {
  return {.name = name,
          .op = "wkv7",
          .family = family,
          .device = Device::kCuda,
          .io = V::kIo,
          .state = DType::kF32,
          .min_sm = 90,
          .t_multiple = 1,
          .min_tokens = V::kMinTokens,
          .deterministic = true,
          .head_sizes = kWkv7HeadSizes,
          .saved_bytes = V::saved,
          .workspace_bytes = V::scratch,
          .forward = forward<V>,
          .backward = backward<V>,
          .step = forward<Serial<V::kIo>>,  // needs no workspace
          .note = note};
}

}  // namespace

constinit const WkvKernel kWkv7Chunk16 =
    kernel<Chunk<false>>("wkv7.cuda.chunk16.bf16", "chunk", "tensor cores; many heads");
constinit const WkvKernel kWkv7Scan16 = kernel<Chunk<true>>(
    "wkv7.cuda.scan16.bf16", "scan", "chunk16 on segments of a sequence side by side; few heads");
constinit const WkvKernel kWkv7SerialBF16 =
    kernel<Serial<DType::kBF16>>("wkv7.cuda.serial.bf16", "serial", "the yardstick; decoding");
constinit const WkvKernel kWkv7SerialF32 =
    kernel<Serial<DType::kF32>>("wkv7.cuda.serial.f32", "serial", "verification in f32");

}  // namespace rwkv::cuda
