#include "kernels/ops/op.h"

namespace rwkv {
namespace {

KernelFn lookup(const Context& ctx, const Op& op, const std::array<KernelFn, 2>& kernels,
                const char* what) {
  const KernelFn fn = kernels[static_cast<size_t>(ctx.device())];
  RWKV_CHECK(fn != nullptr, DeviceError, "op ", op.name, " has no ", device_name(ctx.device()), " ",
             what, " kernel in this build");
  return fn;
}

void refuse_bf16(const Op& op, std::span<const TensorView> views) {
  for (const TensorView& v : views)
    RWKV_CHECK(v.spec.dtype != DType::kBF16 || !v, DTypeError, "op ", op.name,
               " on the cpu: found ", to_string(v.spec),
               ", expected f32; bf16 needs --device cuda");
}

void check_types(const Context& ctx, const Op& op, const OpCall& call) {
  if (ctx.device() != Device::kCpu) return;
  for (const auto& list : {call.in, call.param, call.out, call.dout, call.din})
    refuse_bf16(op, list);
}

}  // namespace

void run_forward(Context& ctx, const Op& op, const OpCall& call) {
  check_types(ctx, op, call);
  lookup(ctx, op, op.forward, "forward")(ctx, call);
}

void run_backward(Context& ctx, const Op& op, const OpCall& call) {
  check_types(ctx, op, call);
  lookup(ctx, op, op.backward, "backward")(ctx, call);
}

const Op& find_op(std::string_view name) {
  std::string known;
  for (const Op* op : all_ops()) {
    if (op->name == name) return *op;
    known += str(known.empty() ? "" : ", ", op->name);
  }
  throw ConfigError(str("no op is called '", name, "'; there are ", known));
}

}  // namespace rwkv
