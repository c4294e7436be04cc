#pragma once
/// Initial values of spec rwkv7 1.2 and 1.3. Every value is a pure function of the seed, the
/// tensor's name and the element's index.

#include <cstdint>
#include <span>
#include <string_view>

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

}  // namespace rwkv
