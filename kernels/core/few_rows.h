#pragma once
/// Products of few rows of A (decoding): as fast as B can be read.

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/core/dtype.h"

namespace rwkv {

inline constexpr int64_t kFewRows = 4;  ///< largest m of these kernels

/// C (m, n) = A (m, k) times rows of B, or C += with `add`; A and C are f32, contiguous in a row.
struct FewRowsCall {
  int64_t m = 1, n = 0, k = 0;
  const float* a = nullptr;
  int64_t lda = 0;
  const std::byte* b = nullptr;  ///< f32, bf16, or i8 rows with their scales (packed_rows.h)
  int64_t row_bytes = 0;         ///< from a row of B to the next
  DType b_dtype = DType::kF32;
  float* c = nullptr;
  int64_t ldc = 0;
  bool add = false;
};

/// The kernels for one instruction set. Both compute columns [begin, end) of C. What an element
/// is does not depend on the bounds (for `updates`: as long as they are multiples of kColumns or
/// n), on m, or on the other rows of A; between instruction sets it differs by rounding.
struct FewRowsKernels {
  const char* name;
  /// B is stored (n, k): dot products.
  void (*dots)(const FewRowsCall& call, int64_t begin, int64_t end);
  /// B is stored (k, n): sums of its rows, from the first to the last. Rows whose factors are all
  /// zero are not read; finite weights presumed, that changes nothing.
  void (*updates)(const FewRowsCall& call, int64_t begin, int64_t end);
};

inline constexpr int64_t kFewRowsColumns = 32;  ///< where ranges of columns may be cut

/// Those that this processor can run, the fastest first.
std::span<const FewRowsKernels> few_rows_kernels();

/// C with the fastest of them, shared out between threads. B is stored (n, k) if `trans_b`, else
/// (k, n). 1 <= m <= kFewRows, n and k at least 1.
void few_rows(const FewRowsCall& call, bool trans_b);

namespace detail {
extern const FewRowsKernels kFewRowsPlain;
extern const FewRowsKernels kFewRowsAvx2;    ///< needs AVX2 and FMA
extern const FewRowsKernels kFewRowsAvx512;  ///< needs AVX-512 F and BW
}  // namespace detail

}  // namespace rwkv
