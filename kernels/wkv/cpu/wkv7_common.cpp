#include "kernels/wkv/cpu/wkv7_common.h"

namespace rwkv::cpu {
namespace {

Wkv7Call unpack_inputs(const OpCall& call) {
  const int64_t n = call.attr<Wkv7Attrs>().head_size;
  const TensorView& r = call.in[0];
  Wkv7Call c{};
  c.batch = r.dim(0);
  c.tokens = r.dim(1);
  c.stride = r.dim(2);
  c.heads = c.stride / n;
  c.state_scale = call.attr<Wkv7Attrs>().state_scale;
  c.row_exponents = call.attr<Wkv7Attrs>().row_exponents;
  c.r = r.f32();
  c.w = call.in[1].f32();
  c.k = call.in[2].f32();
  c.v = call.in[3].f32();
  c.a = call.in[4].f32();
  c.b = call.in[5].f32();
  c.has_state = call.in.size() > 6;
  if (c.has_state && call.in[6].spec.dtype == DType::kF32) c.s0 = call.in[6].f32();
  if (!call.saved.empty()) c.saved = call.saved[0].f32();
  return c;
}

}  // namespace

Wkv7Call unpack_forward(const OpCall& call) {
  Wkv7Call c = unpack_inputs(call);
  c.y = call.out[0].f32();
  if (call.out.size() > 1 && call.out[1].spec.dtype == DType::kF32) c.s_out = call.out[1].f32();
  return c;
}

Wkv7Call unpack_backward(const OpCall& call) {
  Wkv7Call c = unpack_inputs(call);
  RWKV_ASSERT(c.saved != nullptr, "wkv7 backward without the tensor that the forward saved");
  c.dy = call.dout[0].f32();
  if (call.dout.size() > 1) c.ds_out = call.dout[1].f32();
  for (size_t i = 0; i < 7; ++i) {
    c.mode[i] = i < call.din.size() ? call.din_mode[i] : Accum::kSkip;
    c.grad[i] = c.mode[i] == Accum::kSkip ? nullptr : call.din[i].f32();
  }
  return c;
}

}  // namespace rwkv::cpu
