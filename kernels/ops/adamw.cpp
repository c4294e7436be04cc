#include "kernels/ops/adamw.h"

#include "kernels/cuda/adamw.h"

namespace rwkv {
namespace {

void want_cuda(const Context& ctx) {
  RWKV_CHECK(ctx.device() == Device::kCuda, DeviceError, "adamw on flat buffers: found a ",
             device_name(ctx.device()), " context, expected cuda");
}

}  // namespace

size_t grad_norm_workspace_bytes(size_t pieces) {
  return pieces * sizeof(double);
}

void grad_norm(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
               double* norm) {
  want_cuda(ctx);
  cuda::grad_norm(ctx, grad, pieces, count, norm);
}

void adamw_update(Context& ctx, const AdamWBuffers& buffers, const AdamWPiece* pieces, size_t count,
                  const AdamWStep& step, const double* norm) {
  want_cuda(ctx);
  cuda::adamw_update(ctx, buffers, pieces, count, step, norm);
}

}  // namespace rwkv
