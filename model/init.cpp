#include "model/init.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"

namespace rwkv {
namespace {

/// Lower triangle of a^T a for a (n, m), row-major.
std::vector<double> gram(const std::vector<double>& a, int64_t n, int64_t m) {
  std::vector<double> g(static_cast<size_t>(m * m), 0.0);
  parallel_for(m, 16, [&](int64_t begin, int64_t end) {
    int64_t r = 0;
    for (; r + 4 <= n; r += 4) {
      const double *a0 = &a[static_cast<size_t>(r * m)], *a1 = a0 + m, *a2 = a1 + m, *a3 = a2 + m;
      for (int64_t i = begin; i < end; ++i) {
        const double x0 = a0[i], x1 = a1[i], x2 = a2[i], x3 = a3[i];
        double* row = &g[static_cast<size_t>(i * m)];
        for (int64_t j = 0; j <= i; ++j)
          row[j] += x0 * a0[j] + x1 * a1[j] + x2 * a2[j] + x3 * a3[j];
      }
    }
    for (; r < n; ++r) {
      const double* a0 = &a[static_cast<size_t>(r * m)];
      for (int64_t i = begin; i < end; ++i) {
        double* row = &g[static_cast<size_t>(i * m)];
        for (int64_t j = 0; j <= i; ++j) row[j] += a0[i] * a0[j];
      }
    }
  });
  return g;
}

/// In place: lower triangle g -> lower Cholesky factor l with g = l l^T. Row by row.
void cholesky(std::vector<double>& g, int64_t m) {
  for (int64_t j = 0; j < m; ++j) {
    double* gj = &g[static_cast<size_t>(j * m)];
    double d = gj[j];
    for (int64_t k = 0; k < j; ++k) d -= gj[k] * gj[k];
    RWKV_ASSERT(d > 0, "Cholesky of a random Gram matrix, row ", j, " of ", m);
    gj[j] = std::sqrt(d);
    parallel_for(m - j - 1, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = j + 1 + begin; i < j + 1 + end; ++i) {
        double* gi = &g[static_cast<size_t>(i * m)];
        double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        int64_t k = 0;
        for (; k + 4 <= j; k += 4) {
          s0 += gi[k] * gj[k];
          s1 += gi[k + 1] * gj[k + 1];
          s2 += gi[k + 2] * gj[k + 2];
          s3 += gi[k + 3] * gj[k + 3];
        }
        for (; k < j; ++k) s0 += gi[k] * gj[k];
        gi[j] = (gi[j] - ((s0 + s1) + (s2 + s3))) / gj[j];
      }
    });
  }
}

/// One Cholesky QR pass: a (n, m) becomes a R^-1 with R = l^T. Returns a bound on the condition
/// number of a: the ratio of the extreme diagonal entries of R, which is a lower estimate.
double cholesky_qr(std::vector<double>& a, int64_t n, int64_t m) {
  std::vector<double> l = gram(a, n, m);
  cholesky(l, m);
  // Rows of R are needed contiguously: transpose once.
  std::vector<double> r(static_cast<size_t>(m * m), 0.0);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = i; j < m; ++j)
      r[static_cast<size_t>(i * m + j)] = l[static_cast<size_t>(j * m + i)];
  parallel_for(n, 8, [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < m; ++k) {
      const double* rk = &r[static_cast<size_t>(k * m)];
      for (int64_t row = begin; row < end; ++row) {
        double* x = &a[static_cast<size_t>(row * m)];
        const double q = x[k] /= rk[k];
        for (int64_t j = k + 1; j < m; ++j) x[j] -= q * rk[j];
      }
    }
  });
  double low = r[0], high = r[0];
  for (int64_t i = 0; i < m; ++i) {
    low = std::min(low, r[static_cast<size_t>(i * m + i)]);
    high = std::max(high, r[static_cast<size_t>(i * m + i)]);
  }
  return high / low;
}

}  // namespace

void init_uniform(std::span<float> out, double low, double high, uint64_t seed,
                  std::string_view name) {
  const Rng rng(seed, hash_name(name));
  parallel_for(static_cast<int64_t>(out.size()), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      out[static_cast<size_t>(i)] =
          static_cast<float>(low + (high - low) * rng.uniform(static_cast<uint64_t>(i)));
  });
}

void init_orthogonal(std::span<float> out, int64_t rows, int64_t cols, double gain, uint64_t seed,
                     std::string_view name) {
  RWKV_ASSERT(static_cast<int64_t>(out.size()) == rows * cols);
  const bool wide = rows < cols;
  const int64_t n = wide ? cols : rows, m = wide ? rows : cols;
  std::vector<double> a(static_cast<size_t>(n * m));
  const Rng rng(seed, hash_name(name));
  parallel_for(n * m, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      a[static_cast<size_t>(i)] = rng.normal(static_cast<uint64_t>(i));
  });
  // One pass leaves an error of about cond^2 * 1e-16. Tall random matrices have a condition number
  // close to 1, square ones about m: those need the second pass.
  const double estimate = cholesky_qr(a, n, m);
  if (estimate * estimate > 100 || n < 2 * m) cholesky_qr(a, n, m);
  parallel_for(n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < m; ++j) {
        const auto value = static_cast<float>(gain * a[static_cast<size_t>(i * m + j)]);
        out[static_cast<size_t>(wide ? j * cols + i : i * cols + j)] = value;
      }
  });
}

ParamId Initializer::id(const std::string& name) const {
  const auto found = params_.find(name);
  RWKV_ASSERT(found.has_value(), name);
  return *found;
}

std::span<float> Initializer::tensor(const std::string& name) const {
  const TensorView t = values_[id(name)];
  return {t.f32(), static_cast<size_t>(t.numel())};
}

void Initializer::fill(const std::string& name, const std::function<double(double)>& f) const {
  const std::span<float> t = tensor(name);
  for (size_t i = 0; i < t.size(); ++i) t[i] = static_cast<float>(f(static_cast<double>(i)));
}

void Initializer::constant(const std::string& name, double value) const {
  std::ranges::fill(tensor(name), static_cast<float>(value));
}

void Initializer::layer_norm(const std::string& name) const {
  constant(name + ".weight", 1);
  constant(name + ".bias", 0);
}

void Initializer::uniform(const std::string& name, double low, double high) const {
  init_uniform(tensor(name), low, high, seed_, name);
}

void Initializer::orthogonal(const std::string& name, double gain) const {
  const TensorSpec& s = params_[id(name)].spec;
  init_orthogonal(tensor(name), s[0], s[1], gain, seed_, name);
}

void Initializer::orthogonal_by_shape(const std::string& name, double scale) const {
  const TensorSpec& s = params_[id(name)].spec;
  const double tall = static_cast<double>(s[0]) / static_cast<double>(s[1]);
  orthogonal(name, scale * (tall > 1 ? std::sqrt(tall) : 1));
}

}  // namespace rwkv
