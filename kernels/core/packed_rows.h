#pragma once
/// Matrices in fewer bytes for the CPU, which decodes as fast as it reads weights: bf16, or int8
/// with one scale per row.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"
#include "kernels/core/tensor.h"

namespace rwkv {

/// A row of int8 numbers q is followed by the bytes of its f32 scale s: the row is s q.
inline constexpr int64_t kRowScaleBytes = 4;

/// What a matrix of (rows, cols) f32 numbers is as `type`: itself, bf16 of that shape, or i8 (rows,
/// cols + kRowScaleBytes). Throws ConfigError for other types.
inline TensorSpec packed_spec(const TensorSpec& matrix, DType type) {
  RWKV_CHECK(type == DType::kF32 || type == DType::kBF16 || type == DType::kI8, ConfigError,
             "weights as ", dtype_name(type), ", expected f32, bf16 or i8");
  TensorSpec packed = matrix;
  packed.dtype = type;
  if (type == DType::kI8) packed.dim[static_cast<size_t>(packed.rank - 1)] += kRowScaleBytes;
  return packed;
}

/// Columns of a matrix whose spec is a packed one.
inline int64_t packed_columns(const TensorSpec& packed) {
  return packed.last() - (packed.dtype == DType::kI8 ? kRowScaleBytes : 0);
}

inline float row_scale(const int8_t* row, int64_t cols) {
  float scale;
  std::memcpy(&scale, row + cols, sizeof scale);
  return scale;
}

/// q = round(x / s), s = largest magnitude / 127; a row of zeros has s = 0. The error of an element
/// is at most s / 2.
inline void pack_row(const float* x, int64_t cols, int8_t* row) {
  float largest = 0;
  for (int64_t j = 0; j < cols; ++j) largest = std::fmax(largest, std::fabs(x[j]));
  const float scale = largest / 127, inverse = scale > 0 ? 1 / scale : 0;
  for (int64_t j = 0; j < cols; ++j)
    row[j] =
        static_cast<int8_t>(std::fmin(std::fmax(std::nearbyint(x[j] * inverse), -127.0F), 127.0F));
  std::memcpy(row + cols, &scale, sizeof scale);
}

}  // namespace rwkv
