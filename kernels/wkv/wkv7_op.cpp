#include <cmath>

#include "kernels/wkv/registry.h"
#include "kernels/wkv/wkv.h"

namespace rwkv {
namespace {

constexpr const char* kInputNames[] = {"r", "w_logit", "k", "v", "a", "b"};

WkvShape shape_of(const ShapeCall& call) {
  const int64_t n = call.attr<Wkv7Attrs>().head_size;
  const TensorSpec& r = call.in[0];
  return {r[0], r[1], r[2] / n, n, call.in.size() >= 7};
}

void infer(ShapeCall& call) {
  RWKV_CHECK(call.attrs != nullptr, ConfigError,
             "wkv7: attributes are missing; pass a Wkv7Attrs with head size and kernel");
  const auto& attrs = call.attr<Wkv7Attrs>();
  RWKV_CHECK(call.in.size() >= 6 && call.in.size() <= 9, ShapeError, "wkv7: found ", call.in.size(),
             " inputs, expected r, w_logit, k, v, a, b and optionally s0, elapsed and exponent");
  RWKV_CHECK(call.param.empty(), ShapeError, "wkv7: found ", call.param.size(),
             " parameters, expected none");
  const TensorSpec& r = call.in[0];
  const int64_t n = attrs.head_size;
  RWKV_CHECK(n >= 1, ConfigError, "wkv7: head size ", n, " in the attributes, expected 1 or more");
  RWKV_CHECK(r.rank == 3 && r[0] >= 1 && r[1] >= 1 && r[2] >= 1, ShapeError, "wkv7: r is ",
             to_string(r), ", expected (batch, tokens, channels), none of them zero");
  RWKV_CHECK(r[2] % n == 0, ShapeError, "wkv7: ", r[2], " channels in r ", to_string(r),
             " are not a whole number of heads of size ", n, "; is head_size right?");
  for (size_t i = 1; i < 6; ++i) {
    RWKV_CHECK(call.in[i] == r, ShapeError, "wkv7: ", kInputNames[i], " is ", to_string(call.in[i]),
               ", expected the shape and type of r, ", to_string(r));
  }
  const WkvShape shape = shape_of(call);
  RWKV_CHECK(attrs.kernel != nullptr, ConfigError,
             "wkv7: no variant was chosen; call select_wkv before planning");
  int power = 0;
  RWKV_CHECK(attrs.state_scale == 1 || (attrs.kernel->state == DType::kF16 &&
                                        std::frexp(attrs.state_scale, &power) == 0.5F),
             ConfigError, "wkv7: variant ", attrs.kernel->name, " with a state scale of ",
             attrs.state_scale, ", expected ",
             attrs.kernel->state == DType::kF16 ? "a power of two" : "1, its state is f32");
  RWKV_CHECK(!attrs.row_exponents || attrs.kernel->state == DType::kF16, ConfigError,
             "wkv7: variant ", attrs.kernel->name,
             " has an f32 state, whose rows have no exponents");
  TensorSpec state({shape.batch, shape.heads, n, n}, DType::kF32);
  if (shape.has_state) {
    if (attrs.kernel->state == DType::kF16 && call.in[6].dtype == DType::kF16)
      state.dtype = DType::kF16;
    RWKV_CHECK(call.in[6] == state, ShapeError, "wkv7: s0 is ", to_string(call.in[6]),
               ", expected ", to_string(state), " (batch, heads, value row, key column)");
  }
  const std::string misfit =
      wkv_misfit(*attrs.kernel, "wkv7", attrs.kernel->device, r.dtype, shape);
  RWKV_CHECK(misfit.empty(), ConfigError, "wkv7: variant ", attrs.kernel->name,
             " cannot run this shape: ", misfit);
  call.out = {r};
  if (shape.has_state) call.out.push_back(state);
  if (call.in.size() >= 8) {
    const TensorSpec elapsed({shape.batch}, DType::kI32);
    RWKV_CHECK(attrs.kernel->state == DType::kF16, ConfigError, "wkv7: variant ",
               attrs.kernel->name, " counts no tokens; leave elapsed away");
    RWKV_CHECK(call.in[7] == elapsed, ShapeError, "wkv7: elapsed is ", to_string(call.in[7]),
               ", expected ", to_string(elapsed), ", one counter per sequence");
    call.out.push_back(elapsed);
  }
  RWKV_CHECK((call.in.size() == 9) == (attrs.row_exponents && shape.has_state), ShapeError,
             "wkv7: found ", call.in.size(), " inputs ", attrs.row_exponents ? "with" : "without",
             " exponents of rows; a state and its exponents come together");
  if (call.in.size() == 9) {
    const TensorSpec exponent({shape.batch, shape.heads, n}, DType::kI8);
    RWKV_CHECK(call.in[8] == exponent, ShapeError, "wkv7: exponent is ", to_string(call.in[8]),
               ", expected ", to_string(exponent), ", one per row of the state");
    call.out.push_back(exponent);
  }
  const auto floats = attrs.kernel->saved_bytes(shape) / sizeof(float);
  call.saved = {TensorSpec({static_cast<int64_t>(floats)}, DType::kF32)};
  call.workspace_bytes = attrs.kernel->workspace_bytes(shape);
}

void forward(Context& ctx, const OpCall& call) {
  const WkvKernel& kernel = *call.attr<Wkv7Attrs>().kernel;
  // Decoding: one token, nothing kept for a backward.
  const bool keeps = !call.saved.empty() && call.saved[0];
  const bool one_token = call.in[0].dim(1) == 1;
  (one_token && !keeps && kernel.step != nullptr ? kernel.step : kernel.forward)(ctx, call);
}

void backward(Context& ctx, const OpCall& call) {
  call.attr<Wkv7Attrs>().kernel->backward(ctx, call);
}

double forward_flops(const ShapeCall& call) {
  const WkvShape s = shape_of(call);
  return wkv7_forward_flops(s);
}

double backward_flops(const ShapeCall& call) {
  return wkv7_backward_flops(shape_of(call));
}

}  // namespace

double wkv7_forward_flops(const WkvShape& s) {
  return 9.0 * static_cast<double>(s.batch * s.tokens * s.heads * s.head_size * s.head_size);
}

double wkv7_backward_flops(const WkvShape& s) {
  return 24.0 * static_cast<double>(s.batch * s.tokens * s.heads * s.head_size * s.head_size);
}

constinit const Op kWkv7 = {
    .name = "wkv7",
    .infer = infer,
    .backward_reads_in = 0x3f,
    .backward_reads_out = 0,
    .forward = {forward, forward},
    .backward = {backward, backward},
    .forward_flops = forward_flops,
    .backward_flops = backward_flops,
    .saved_optional = true,
};

}  // namespace rwkv
