#include "kernels/wkv/registry.h"
#include "kernels/wkv/wkv.h"

namespace rwkv {
namespace {

WkvShape shape_of(const ShapeCall& call) {
  const TensorSpec& k = call.in[0];
  return {k[0], k[1], k[2], 1, call.in.size() == 5};
}

void infer(ShapeCall& call) {
  RWKV_CHECK(call.attrs != nullptr, ConfigError,
             "wkv4: attributes are missing; pass a Wkv4Attrs with the kernel");
  RWKV_CHECK(call.in.size() == 2 || call.in.size() == 5, ShapeError, "wkv4: found ", call.in.size(),
             " inputs, expected k, v and optionally a0, b0, p0 (all three)");
  RWKV_CHECK(call.param.size() == 2, ShapeError, "wkv4: found ", call.param.size(),
             " parameters, expected time_decay, time_first");
  const TensorSpec &k = call.in[0], &v = call.in[1];
  RWKV_CHECK(k.rank == 3 && k[0] >= 1 && k[1] >= 1 && k[2] >= 1, ShapeError, "wkv4: k is ",
             to_string(k), ", expected (batch, tokens, channels), none of them zero");
  RWKV_CHECK(v == k, ShapeError, "wkv4: v is ", to_string(v),
             ", expected the shape and type of k, ", to_string(k));
  const WkvShape shape = shape_of(call);
  const TensorSpec param({shape.heads}, DType::kF32),
      state({shape.batch, shape.heads}, DType::kF32);
  for (size_t i = 0; i < 2; ++i) {
    RWKV_CHECK(call.param[i] == param, ShapeError, "wkv4: ", i == 0 ? "time_decay" : "time_first",
               " is ", to_string(call.param[i]), ", expected ", to_string(param),
               ", one per channel of k");
  }
  for (size_t i = 2; i < call.in.size(); ++i) {
    constexpr const char* kNames[] = {"a0", "b0", "p0"};
    RWKV_CHECK(call.in[i] == state, ShapeError, "wkv4: ", kNames[i - 2], " is ",
               to_string(call.in[i]), ", expected ", to_string(state), " (batch, channels)");
  }
  const WkvKernel* kernel = call.attr<Wkv4Attrs>().kernel;
  RWKV_CHECK(kernel != nullptr, ConfigError,
             "wkv4: no variant was chosen; call select_wkv before planning");
  const std::string misfit = wkv_misfit(*kernel, "wkv4", kernel->device, k.dtype, shape);
  RWKV_CHECK(misfit.empty(), ConfigError, "wkv4: variant ", kernel->name,
             " cannot run this shape: ", misfit);
  call.out = {k};
  if (shape.has_state) call.out.insert(call.out.end(), 3, state);
  const auto floats = kernel->saved_bytes(shape) / sizeof(float);
  call.saved = {TensorSpec({static_cast<int64_t>(floats)}, DType::kF32)};
  call.workspace_bytes = kernel->workspace_bytes(shape);
}

void forward(Context& ctx, const OpCall& call) {
  const WkvKernel& kernel = *call.attr<Wkv4Attrs>().kernel;
  // Decoding: one token, nothing kept for a backward.
  const bool keeps = !call.saved.empty() && call.saved[0];
  const bool one_token = call.in[0].dim(1) == 1;
  (one_token && !keeps && kernel.step != nullptr ? kernel.step : kernel.forward)(ctx, call);
}

void backward(Context& ctx, const OpCall& call) {
  call.attr<Wkv4Attrs>().kernel->backward(ctx, call);
}

double forward_flops(const ShapeCall& call) {
  return wkv4_forward_flops(shape_of(call));
}

double backward_flops(const ShapeCall& call) {
  return wkv4_backward_flops(shape_of(call));
}

}  // namespace

double wkv4_forward_flops(const WkvShape& s) {
  return 12.0 * static_cast<double>(s.batch * s.tokens * s.heads * s.head_size);
}

double wkv4_backward_flops(const WkvShape& s) {
  return 35.0 * static_cast<double>(s.batch * s.tokens * s.heads * s.head_size);
}

constinit const Op kWkv4 = {
    .name = "wkv4",
    .infer = infer,
    .backward_reads_in = 0b11111,
    .backward_reads_out = 0b1001,  // y and p_out
    .forward = {forward, forward},
    .backward = {backward, backward},
    .forward_flops = forward_flops,
    .backward_flops = backward_flops,
    .saved_optional = true,
};

}  // namespace rwkv
