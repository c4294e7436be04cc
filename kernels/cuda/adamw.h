#pragma once
/// The CUDA side of kernels/ops/adamw.h.

#include "kernels/ops/adamw.h"

namespace rwkv::cuda {

#if RWKV_HAVE_CUDA
void add_loss(Context& ctx, const float* loss, double* sum, Accum mode);
void grad_norm(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
               const double* loss_sum, double* norm);
void grad_squares(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
                  double* sum);
void adamw_update(Context& ctx, const AdamWBuffers& buffers, const AdamWPiece* pieces, size_t count,
                  const AdamWStep& step, const double* norm);
#else
// Never reached: no CUDA context can be made in a build without CUDA.
inline void add_loss(Context&, const float*, double*, Accum) {}
inline void grad_norm(Context&, const float*, const AdamWPiece*, size_t, const double*, double*) {}
inline void grad_squares(Context&, const float*, const AdamWPiece*, size_t, double*) {}
inline void adamw_update(Context&, const AdamWBuffers&, const AdamWPiece*, size_t, const AdamWStep&,
                         const double*) {}
#endif

}  // namespace rwkv::cuda
