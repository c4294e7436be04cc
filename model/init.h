#pragma once
/// Initial values of spec rwkv7 1.2 and 1.3, rwkv4 1. Every value is a pure function of the seed,
/// the tensor's name and the element's index.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "model/params.h"

namespace rwkv {

/// Uniform in [low, high).
void init_uniform(std::span<float> out, double low, double high, uint64_t seed,
                  std::string_view name);

/// gain times an orthonormal matrix (rows, cols): the Q of a QR factorisation with positive
/// diagonal R of a standard normal matrix, transposed first when rows < cols. Columns are
/// orthonormal if rows >= cols, rows otherwise. Computed in double by Cholesky QR, twice where the
/// normal matrix is badly conditioned; off by less than 1e-9 from orthonormal before rounding.
void init_orthogonal(std::span<float> out, int64_t rows, int64_t cols, double gain, uint64_t seed,
                     std::string_view name);

/// Initial values by tensor name. Throws InternalError for a name that the model does not have.
class Initializer {
 public:
  Initializer(const ParamRegistry& params, const ParamStore& values, uint64_t seed)
      : params_(params), values_(values), seed_(seed) {}

  /// f(index of the element).
  void fill(const std::string& name, const std::function<double(double)>& f) const;
  void constant(const std::string& name, double value) const;
  void layer_norm(const std::string& name) const;  ///< weight 1, bias 0
  void uniform(const std::string& name, double low, double high) const;
  void orthogonal(const std::string& name, double gain) const;
  /// The gain rule of the reference: scale, times sqrt(rows / cols) for tall matrices.
  void orthogonal_by_shape(const std::string& name, double scale) const;

 private:
  ParamId id(const std::string& name) const;
  std::span<float> tensor(const std::string& name) const;

  const ParamRegistry& params_;
  const ParamStore& values_;
  uint64_t seed_;
};

}  // namespace rwkv
