#pragma once
/// Orthonormal bases of random matrices, for initial values. Most of the work is matrix products.

#include <cstdint>

namespace rwkv::cpu {

/// Both replace the columns of a (n, m), n >= m, full rank, by the Q of its QR factorisation whose
/// R has a positive diagonal: with exact arithmetic the same numbers. Results do not depend on the
/// number of threads, nor on addresses.

/// `a` is column-major; its columns are `stride` numbers apart, best not a multiple of 512, which
/// would put all of a row into the same few lines of the caches. Blocked Householder reflections,
/// 8/3 m^3 operations for n = m; orthonormal to rounding whatever the condition of `a`. Needs
/// memory for n x 128 more. source: Schreiber and Van Loan 1989 (compact WY form); Elmroth and
/// Gustavson 2000, recursion
void orthonormal_by_householder(double* a, int64_t n, int64_t m, int64_t stride);

/// `a` is row-major. Cholesky factor of a^T a, 2 n m^2 + m^3 / 3 operations; off from orthonormal
/// by about 1e-16 times the square of the condition of `a`, which is small for tall random
/// matrices. Runs twice where it turns out not to be. Needs memory for m x m more. Throws
/// InternalError if `a` is close to singular.
void orthonormal_by_cholesky(double* a, int64_t n, int64_t m);

}  // namespace rwkv::cpu
