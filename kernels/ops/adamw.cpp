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

void add_loss(Context& ctx, const float* loss, double* sum, Accum mode) {
  want_cuda(ctx);
  cuda::add_loss(ctx, loss, sum, mode);
}

void grad_norm(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
               const double* loss_sum, double* norm) {
  want_cuda(ctx);
  cuda::grad_norm(ctx, grad, pieces, count, loss_sum, norm);
}

void grad_squares(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
                  double* sum) {
  want_cuda(ctx);
  cuda::grad_squares(ctx, grad, pieces, count, sum);
}

void adamw_update(Context& ctx, const AdamWBuffers& buffers, const AdamWPiece* pieces, size_t count,
                  const AdamWStep& step, const double* norm) {
  want_cuda(ctx);
  cuda::adamw_update(ctx, buffers, pieces, count, step, norm);
}

}  // namespace rwkv
