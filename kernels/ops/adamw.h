#pragma once
/// AdamW and the global gradient norm over flat buffers, on a CUDA context (the CPU's are in
/// trainer/optimizer). Not an op: nothing is differentiated.
///
/// Two passes: one over the gradients for the norm, one over gradients, moments and masters for the
/// update, which also writes the bf16 copies that the products read. Nothing allocates or
/// synchronises; the norm stays on the device, and the update leaves everything as it is when the
/// norm is not finite. Deterministic: squares are added in double, pieces in order.

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace rwkv {

/// A run of at most kAdamWPieceElements elements [begin, end) of the flat buffers, all of one
/// parameter. `begin` is a multiple of 8.
struct AdamWPiece {
  int64_t begin, end;
  float lr_scale;  ///< multiplies the learning rate
  float decay;     ///< weight decay, 0 for parameters without
  /// Added to an index to find its element among moments and masters, where these hold less than
  /// the gradients do (the shard of one rank). A multiple of 8.
  int64_t shift = 0;
};
inline constexpr int64_t kAdamWPieceElements = int64_t{1} << 14;

/// What one update needs besides the buffers.
struct AdamWStep {
  double beta1 = 0.9, beta2 = 0.99, eps = 1e-18;
  double lr = 0;       ///< times lr_scale of the piece
  double clip = 0;     ///< limit of the global norm, 0: none
  int64_t update = 1;  ///< number of updates including this one, for the bias corrections
};

/// Flat device buffers: element i of grad and copy and element i + shift of the others belong to
/// the same parameter element.
struct AdamWBuffers {
  float *master, *m, *v;
  const float* grad;
  BF16* copy = nullptr;       ///< receives the updated masters rounded to bf16; may be null
  bool shifted_grad = false;  ///< the shift of pieces counts for grad, too
};

/// Device memory for `pieces` pieces: one double of partial sums each.
size_t grad_norm_workspace_bytes(size_t pieces);

/// sum[0] = loss[0], or += with kAdd: the losses of a step's micro-batches, on the device. A loss
/// that is not finite makes the norm so, see grad_norm. Device memory both.
void add_loss(Context& ctx, const float* loss, double* sum, Accum mode);

/// norm[0] = 2-norm over all pieces of grad, NaN or infinite if any of them is, NaN if loss_sum
/// (may be null) is not finite. `pieces`, `loss_sum` and `norm` are device memory. Uses
/// ctx.workspace(grad_norm_workspace_bytes(count)). Throws DeviceError on other devices than CUDA.
void grad_norm(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
               const double* loss_sum, double* norm);

/// sum[0] = sum of the squares over all pieces of grad: grad_norm without its root and its loss.
void grad_squares(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
                  double* sum);

/// One update of all pieces, with `norm` as written by grad_norm:
///   g = grad * s,  s = clip / (norm + 1e-6) if that is below 1 and clip > 0, else 1
///   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
///   p -= lr lr_scale ((m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps) + decay p)
/// Does nothing if the norm is not finite: read it and stop. source: spec rwkv7 6.1
void adamw_update(Context& ctx, const AdamWBuffers& buffers, const AdamWPiece* pieces, size_t count,
                  const AdamWStep& step, const double* norm);

}  // namespace rwkv
