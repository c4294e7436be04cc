#include "kernels/core/tensor.h"

namespace rwkv {

TensorSpec::TensorSpec(std::initializer_list<int64_t> d, DType t) : dtype(t) {
  RWKV_CHECK(d.size() <= 4, ShapeError, "tensor of rank ", d.size(), ", at most 4 is supported");
  for (const int64_t n : d) {
    RWKV_CHECK(n >= 0, ShapeError, "tensor dimension ", n, " is negative");
    dim[static_cast<size_t>(rank++)] = n;
  }
}

std::string to_string(const TensorSpec& spec) {
  std::string s = "(";
  for (int i = 0; i < spec.rank; ++i) s += str(i ? ", " : "", spec[i]);
  return s + ") " + std::string(dtype_name(spec.dtype));
}

TensorView TensorView::slice(int64_t begin, int64_t end) const {
  RWKV_CHECK(spec.rank >= 1 && begin >= 0 && begin <= end && end <= spec.dim[0], ShapeError,
             "rows [", begin, ", ", end, ") of a tensor ", to_string(spec));
  TensorView v = *this;
  const size_t row_bytes = spec.dim[0] > 0 ? spec.bytes() / static_cast<size_t>(spec.dim[0]) : 0;
  v.data = static_cast<std::byte*>(data) + row_bytes * static_cast<size_t>(begin);
  v.spec.dim[0] = end - begin;
  return v;
}

}  // namespace rwkv
