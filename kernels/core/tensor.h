#pragma once
/// Non-owning tensors. Memory belongs to an `Arena` (arena.h) or to the caller.

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"

namespace rwkv {

/// Shape and element type without storage: what the planner works with. Rank 0 is a scalar.
struct TensorSpec {
  std::array<int64_t, 4> dim{1, 1, 1, 1};
  int8_t rank = 0;
  DType dtype = DType::kF32;

  TensorSpec() = default;
  TensorSpec(std::initializer_list<int64_t> d, DType t = DType::kF32);

  int64_t operator[](int i) const { return dim[static_cast<size_t>(i)]; }
  int64_t numel() const { return dim[0] * dim[1] * dim[2] * dim[3]; }
  size_t bytes() const { return static_cast<size_t>(numel()) * dtype_bytes(dtype); }
  /// Product of all dimensions but the last: the number of rows of a (..., C) tensor.
  int64_t rows() const { return rank == 0 ? 1 : numel() / std::max<int64_t>(last(), 1); }
  int64_t last() const { return rank == 0 ? 1 : dim[static_cast<size_t>(rank - 1)]; }
  bool same_shape(const TensorSpec& o) const { return rank == o.rank && dim == o.dim; }
  bool operator==(const TensorSpec& o) const { return same_shape(o) && dtype == o.dtype; }
};

/// "(2, 64, 768) f32"
std::string to_string(const TensorSpec& spec);

/// A view: contiguous, row-major, sliced along the leading dimension only. Passed by value.
/// A default-constructed view is null; optional tensors are passed that way.
struct TensorView {
  void* data = nullptr;
  TensorSpec spec;
  Device device = Device::kCpu;

  TensorView() = default;
  TensorView(void* p, const TensorSpec& s, Device d = Device::kCpu) : data(p), spec(s), device(d) {}

  explicit operator bool() const { return data != nullptr; }
  int64_t dim(int i) const { return spec[i]; }
  int64_t numel() const { return spec.numel(); }
  size_t bytes() const { return spec.bytes(); }
  int64_t rows() const { return spec.rows(); }
  int64_t last() const { return spec.last(); }

  /// Rows [begin, end) of the leading dimension. Throws ShapeError when out of range.
  TensorView slice(int64_t begin, int64_t end) const;

  /// The elements as T. Throws DTypeError if T is not the element type. Null views give nullptr.
  template <class T>
  T* as() const {
    RWKV_CHECK(data == nullptr || spec.dtype == DTypeOf<T>::value, DTypeError, "tensor ",
               to_string(spec), " read as ", dtype_name(DTypeOf<T>::value));
    return static_cast<T*>(data);
  }
  float* f32() const { return as<float>(); }
};

}  // namespace rwkv
