#pragma once
/// The CUDA side of kernels/ops/adamw.h.

#include "kernels/ops/adamw.h"

namespace rwkv::cuda {

#if RWKV_HAVE_CUDA
void grad_norm(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
               double* norm);
void adamw_update(Context& ctx, const AdamWBuffers& buffers, const AdamWPiece* pieces, size_t count,
                  const AdamWStep& step, const double* norm);
#else
// Never reached: no CUDA context can be made in a build without CUDA.
inline void grad_norm(Context&, const float*, const AdamWPiece*, size_t, double*) {}
inline void adamw_update(Context&, const AdamWBuffers&, const AdamWPiece*, size_t, const AdamWStep&,
                         const double*) {}
#endif

}  // namespace rwkv::cuda
