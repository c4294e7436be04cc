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

}  // namespace

void run_forward(Context& ctx, const Op& op, const OpCall& call) {
  lookup(ctx, op, op.forward, "forward")(ctx, call);
}

void run_backward(Context& ctx, const Op& op, const OpCall& call) {
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
