#pragma once
/// What a reference is handed: the operands of an op as plain vectors of the scalar S (double, or
/// std::complex<double> for complex-step derivatives). For tests and rwkv-bench only.
///
/// References are plain loops written from the specification, independently of the kernels. Where
/// they compare numbers (maxima, norm floors), complex ones compare by their real parts.

#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/tensor.h"

namespace rwkv::ref {

template <class S>
struct RefCall {
  std::vector<TensorSpec> in_spec, param_spec, out_spec;
  std::vector<std::vector<S>> in, param;    ///< an i32 input is empty here ...
  std::vector<std::vector<int32_t>> ids;    ///< ... and has its values here, at the same index
  std::vector<std::vector<S>> out;          ///< forward writes; sized by the caller
  std::vector<std::vector<S>> dout;         ///< backward reads
  std::vector<std::vector<S>> din, dparam;  ///< backward writes; zero-filled by the caller
  const void* attrs = nullptr;

  template <class T>
  const T& attr() const {
    return *static_cast<const T*>(attrs);
  }
};

inline double real_part(double x) {
  return x;
}
inline double real_part(const std::complex<double>& x) {
  return x.real();
}

/// Index of element (row, column) of a matrix with `columns` columns.
inline size_t at(int64_t row, int64_t column, int64_t columns) {
  return static_cast<size_t>(row * columns + column);
}

template <class S>
S logistic(S x) {
  return 1.0 / (1.0 + std::exp(-x));
}

}  // namespace rwkv::ref
