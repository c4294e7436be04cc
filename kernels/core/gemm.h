#pragma once
/// Matrix products behind one call, for every backend.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/core/dtype.h"
#include "kernels/core/tensor.h"

namespace rwkv {

class Context;

/// C (m, n) = op(A) (m, k) * op(B) (k, n), or C += with kAdd. All row-major.
/// A is stored (m, k), or (k, m) when `trans_a`; B is stored (k, n), or (n, k) when `trans_b`.
/// lda, ldb, ldc are row strides in elements of the stored matrices.
struct GemmCall {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  int64_t lda = 0, ldb = 0, ldc = 0;
  bool trans_a = false, trans_b = false;
  Accum mode = Accum::kWrite;
  DType dtype = DType::kF32;  ///< of A and B: f32, or bf16 on CUDA
  /// CPU only: that of B where A is f32: f32, bf16, or i8 rows with their scales (packed_rows.h),
  /// ldb counting their bytes.
  DType b_dtype = DType::kF32;
  DType out_dtype = DType::kF32;  ///< of C: f32, or that of A and B; sums are in f32
  /// CUDA only: a factor of the product, in device memory; null means 1.
  const float* alpha = nullptr;
  /// kAdd only: what the product is added to, laid out as C; null means C itself. On the CPU it is
  /// copied to C first.
  const void* addend = nullptr;
};

/// Runs the product on the context's device. f32 on the CPU. Deterministic: every element of C is
/// summed in an order that depends on the shapes only, never on the number of threads.
/// mode kSkip does nothing.
void gemm(Context& ctx, const GemmCall& call);

/// On a CUDA context, a product whose shape is new gets cuBLASLt's first proposal, or with
/// measuring on the fastest of its proposals: the product then runs many times, so that with kAdd
/// its result is garbage. Only for warm-up runs, before anything is recorded or kept. Algorithms
/// whose sums are not in one fixed order of f32 additions are never proposed.
void measure_gemm_algorithms(Context& ctx, bool on);
enum class GemmChoices : uint8_t {
  kUsed,      ///< what products on this context have run with
  kMeasured,  ///< what was measured by it
};
/// Choices of algorithms, one line per shape, after a line that names device and cuBLASLt. Empty on
/// the CPU.
std::string export_gemm_algorithms(const Context& ctx, GemmChoices which = GemmChoices::kUsed);
/// Adds the choices of such a text for shapes that have none yet. Returns how many; 0 if it was
/// made for another device or library. Throws IoError if it is damaged.
size_t import_gemm_algorithms(Context& ctx, std::string_view text);

/// y (rows, out) = x (rows, in) W^T with W stored (out, in), contiguous f32: the linear layers.
void gemm_nt(Context& ctx, int64_t m, int64_t n, int64_t k, const float* a, const float* b,
             float* c, Accum mode);
/// The same on the CPU with W (out, in) in any type of packed_rows.h.
void gemm_nt(Context& ctx, int64_t m, const float* a, const TensorView& w, float* c, Accum mode);
/// C (m, n) = A (m, k) B (k, n).
void gemm_nn(Context& ctx, int64_t m, int64_t n, int64_t k, const float* a, const float* b,
             float* c, Accum mode);
/// The same on the CPU with B (k, n) in any type of packed_rows.h.
void gemm_nn(Context& ctx, int64_t m, const float* a, const TensorView& b, float* c, Accum mode);
/// C (m, n) = A^T B with A stored (k, m), B (k, n): weight gradients.
void gemm_tn(Context& ctx, int64_t m, int64_t n, int64_t k, const float* a, const float* b,
             float* c, Accum mode);

}  // namespace rwkv
