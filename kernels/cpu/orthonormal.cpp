#include "kernels/cpu/orthonormal.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/parallel.h"

namespace rwkv::cpu {
namespace {

// Only matrix products are left to Eigen: its sums of vectors depend on their alignment.
using Matrix = Eigen::MatrixXd;
using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Stride = Eigen::OuterStride<>;
using Columns = Eigen::Map<Matrix, 0, Stride>;
using Rows = Eigen::Map<RowMatrix, 0, Stride>;

constexpr int64_t kPanel = 128;    // columns per block reflection
constexpr int64_t kSmall = 8;      // columns that are reflected one by one
constexpr int64_t kColumns = 256;  // columns of the rest that a thread takes
constexpr int64_t kBlock = 64;     // of the Cholesky factor
constexpr int64_t kTile = 256;     // rows and columns that a thread takes there

Columns columns(double* p, int64_t rows, int64_t cols, int64_t stride) {
  return Columns(p, rows, cols, Stride(stride));
}

Rows rows(double* p, int64_t count, int64_t cols, int64_t stride) {
  return Rows(p, count, cols, Stride(stride));
}

/// c += sign * a b. Eigen has other code for small and thin products, which looks at alignments.
template <class A, class B, class C>
void add_product(const A& a, const B& b, double sign, C& c) {
  if (a.rows() > 1 && b.cols() > 1 && a.cols() > 0 && a.rows() + a.cols() + b.cols() >= 20) {
    c.noalias() += (sign * a) * b;
    return;
  }
  for (int64_t i = 0; i < a.rows(); ++i)
    for (int64_t j = 0; j < b.cols(); ++j) {
      double sum = 0;
      for (int64_t k = 0; k < a.cols(); ++k) sum += a(i, k) * b(k, j);
      c(i, j) += sign * sum;
    }
}

template <class A, class B>
Matrix product(const A& a, const B& b) {
  Matrix c = Matrix::Zero(a.rows(), b.cols());
  add_product(a, b, 1, c);
  return c;
}

double dot(const double* x, const double* y, int64_t n) {
  constexpr int kLanes = 16;
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lane[l] += x[i + l] * y[i + l];
  double sum = 0;
  for (; i < n; ++i) sum += x[i] * y[i];
  for (const double s : lane) sum += s;
  return sum;
}

/// One column after the other: see factor().
void factor_small(double* a, int64_t n, int64_t w, int64_t stride, Matrix& t, double* sign) {
  for (int64_t j = 0; j < w; ++j) {
    double* x = a + j * stride;
    // The reflection takes the column to a multiple of the unit vector, away from its first
    // element: v = x - alpha e, scaled to v[0] = 1.
    const double norm = std::sqrt(dot(x + j, x + j, n - j));
    RWKV_ASSERT(norm > 0, "column ", j, " of a random matrix depends on those before it");
    const double alpha = x[j] > 0 ? -norm : norm, first = x[j] - alpha;
    sign[j] = alpha < 0 ? -1 : 1;
    const double tau = -first / alpha;
    for (int64_t i = j + 1; i < n; ++i) x[i] /= first;
    x[j] = 1;
    std::fill(x, x + j, 0.0);
    for (int64_t k = j + 1; k < w; ++k) {
      double* y = a + k * stride;
      const double s = tau * dot(x + j, y + j, n - j);
      for (int64_t i = j; i < n; ++i) y[i] -= s * x[i];
    }
    t(j, j) = tau;
    double with[kSmall];
    for (int64_t k = 0; k < j; ++k) with[k] = dot(a + k * stride + j, x + j, n - j);
    for (int64_t i = 0; i < j; ++i) {
      double sum = 0;
      for (int64_t k = i; k < j; ++k) sum += t(i, k) * with[k];
      t(i, j) = -tau * sum;
    }
  }
}

/// The w columns a (n, w) of the matrix become the vectors Y of their reflections, whose product is
/// I - Y T Y^T; t (w, w) becomes T, upper triangular; sign[j] that of R's diagonal. R is dropped.
void factor(double* a, int64_t n, int64_t w, int64_t stride, Matrix& t, double* sign) {
  t = Matrix::Zero(w, w);
  if (w <= kSmall) return factor_small(a, n, w, stride, t, sign);
  const int64_t left = (w / 2 + kSmall - 1) / kSmall * kSmall, right = w - left;
  double* b = a + left * stride;
  Matrix t1, t2;
  factor(a, n, left, stride, t1, sign);
  const Columns y1 = columns(a, n, left, stride);
  Columns rest = columns(b, n, right, stride);
  add_product(y1, product(t1.transpose(), product(y1.transpose(), rest)), -1, rest);
  factor(b + left, n - left, right, stride, t2, sign + left);
  for (int64_t j = 0; j < right; ++j) std::fill(b + j * stride, b + j * stride + left, 0.0);
  const Columns lower = columns(a + left, n - left, left, stride);
  const Columns y2 = columns(b + left, n - left, right, stride);
  const Matrix cross = product(product(t1, product(lower.transpose(), y2)), t2);
  for (int64_t j = 0; j < w; ++j)
    for (int64_t i = 0; i <= j; ++i)
      t(i, j) = j < left ? t1(i, j) : i < left ? -cross(i, j - left) : t2(i - left, j - left);
}

/// Lower triangle of a^T a for a (n, m), row-major.
std::vector<double> gram(double* a, int64_t n, int64_t m) {
  std::vector<double> g(static_cast<size_t>(m * m), 0.0);
  const int64_t tiles = (m + kTile - 1) / kTile;
  parallel_for(tiles * tiles, 1, [&](int64_t tile, int64_t) {
    const int64_t i = tile / tiles * kTile, j = tile % tiles * kTile;
    if (j > i) return;
    const int64_t height = std::min(kTile, m - i), width = std::min(kTile, m - j);
    Rows out = rows(g.data() + i * m + j, height, width, m);
    add_product(rows(a + i, n, height, m).transpose(), rows(a + j, n, width, m), 1, out);
  });
  return g;
}

/// In place, the lower triangle of a (w, w) block: g -> l with g = l l^T.
void cholesky_small(double* g, int64_t w, int64_t stride) {
  for (int64_t j = 0; j < w; ++j) {
    double* gj = g + j * stride;
    const double d = gj[j] - dot(gj, gj, j);
    RWKV_ASSERT(d > 0, "Cholesky of a random Gram matrix");
    gj[j] = std::sqrt(d);
    for (int64_t i = j + 1; i < w; ++i) {
      double* gi = g + i * stride;
      gi[j] = (gi[j] - dot(gi, gj, j)) / gj[j];
    }
  }
}

/// Inverse of a lower triangular block.
RowMatrix inverse(const double* l, int64_t w, int64_t stride) {
  RowMatrix x = RowMatrix::Zero(w, w);
  for (int64_t i = 0; i < w; ++i) {
    for (int64_t k = 0; k < i; ++k) {
      const double f = l[i * stride + k];
      for (int64_t j = 0; j <= k; ++j) x(i, j) -= f * x(k, j);
    }
    for (int64_t j = 0; j < i; ++j) x(i, j) /= l[i * stride + i];
    x(i, i) = 1 / l[i * stride + i];
  }
  return x;
}

/// x (count, w) becomes x l^-T, l being given by its inverse.
void solve_block(double* x, int64_t count, int64_t w, int64_t stride, const RowMatrix& inverse_l) {
  Rows at = rows(x, count, w, stride);
  RowMatrix out = RowMatrix::Zero(count, w);
  add_product(at, inverse_l.transpose(), 1, out);
  for (int64_t i = 0; i < count; ++i) std::copy_n(out.data() + i * w, w, x + i * stride);
}

/// In place: lower triangle of g (m, m) -> l with g = l l^T. Returns the inverses of l's diagonal
/// blocks.
std::vector<RowMatrix> cholesky(double* g, int64_t m) {
  std::vector<RowMatrix> inverses;
  for (int64_t k = 0; k < m; k += kBlock) {
    const int64_t w = std::min(kBlock, m - k), next = k + w;
    cholesky_small(g + k * m + k, w, m);
    inverses.push_back(inverse(g + k * m + k, w, m));
    parallel_for(m - next, kTile, [&](int64_t begin, int64_t end) {
      solve_block(g + (next + begin) * m + k, end - begin, w, m, inverses.back());
    });
    const int64_t tiles = (m - next + kTile - 1) / kTile;
    parallel_for(tiles * tiles, 1, [&](int64_t tile, int64_t) {
      const int64_t i = next + tile / tiles * kTile, j = next + tile % tiles * kTile;
      if (j > i) return;
      const int64_t height = std::min(kTile, m - i), width = std::min(kTile, m - j);
      Rows out = rows(g + i * m + j, height, width, m);
      add_product(rows(g + i * m + k, height, w, m), rows(g + j * m + k, width, w, m).transpose(),
                  -1, out);
    });
  }
  return inverses;
}

/// One pass of Cholesky QR. Returns an estimate of the condition of `a`: the ratio of the extreme
/// diagonal entries of R, never above it.
double cholesky_pass(double* a, int64_t n, int64_t m) {
  std::vector<double> l = gram(a, n, m);
  const std::vector<RowMatrix> inverses = cholesky(l.data(), m);
  parallel_for(n, kTile, [&](int64_t begin, int64_t end) {
    double* x = a + begin * m;
    const int64_t count = end - begin;
    for (int64_t k = 0; k < m; k += kBlock) {
      const int64_t w = std::min(kBlock, m - k);
      Rows out = rows(x + k, count, w, m);
      if (k > 0)
        add_product(rows(x, count, k, m), rows(l.data() + k * m, w, k, m).transpose(), -1, out);
      solve_block(x + k, count, w, m, inverses[static_cast<size_t>(k / kBlock)]);
    }
  });
  double low = l[0], high = l[0];
  for (int64_t i = 0; i < m; ++i) {
    low = std::min(low, l[static_cast<size_t>(i * m + i)]);
    high = std::max(high, l[static_cast<size_t>(i * m + i)]);
  }
  return high / low;
}

}  // namespace

void orthonormal_by_householder(double* a, int64_t n, int64_t m, int64_t stride) {
  RWKV_ASSERT(n >= m && m >= 1 && stride >= n, n, " x ", m);
  const int64_t panels = (m + kPanel - 1) / kPanel;
  std::vector<Matrix> t(static_cast<size_t>(panels));
  std::vector<double> sign(static_cast<size_t>(m));
  const auto width = [&](int64_t p) { return std::min(kPanel, m - p * kPanel); };
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t k = p * kPanel, w = width(p);
    double* panel = a + k * stride + k;
    const Matrix& tp = t[static_cast<size_t>(p)];
    factor(panel, n - k, w, stride, t[static_cast<size_t>(p)], sign.data() + k);
    const Columns y = columns(panel, n - k, w, stride);
    parallel_for(m - k - w, kColumns, [&](int64_t begin, int64_t end) {
      Columns rest = columns(panel + (w + begin) * stride, n - k, end - begin, stride);
      add_product(y, product(tp.transpose(), product(y.transpose(), rest)), -1, rest);
    });
  }
  // Q is the product of the block reflections, applied to the unit vectors from the last to the
  // first; each finds zeros above and to the left of what the later ones left.
  for (int64_t p = panels; p-- > 0;) {
    const int64_t k = p * kPanel, w = width(p), height = n - k;
    double* panel = a + k * stride + k;
    const Matrix& tp = t[static_cast<size_t>(p)];
    const Matrix y = columns(panel, height, w, stride);
    parallel_for(m - k - w, kColumns, [&](int64_t begin, int64_t end) {
      double* at = panel + (w + begin) * stride;
      for (int64_t j = 0; j < end - begin; ++j)
        std::fill(at + j * stride, at + j * stride + w, 0.0);
      Columns rest = columns(at, height, end - begin, stride);
      const Columns lower = columns(at + w, height - w, end - begin, stride);
      const auto y_lower = y.bottomRows(height - w);
      add_product(y, product(tp, product(y_lower.transpose(), lower)), -1, rest);
    });
    const Matrix with_unit = product(tp, y.topRows(w).transpose());
    for (int64_t j = 0; j < w; ++j) {
      std::fill(panel + j * stride, panel + j * stride + height, 0.0);
      panel[j * stride + j] = 1;
    }
    Columns own = columns(panel, height, w, stride);
    add_product(y, with_unit, -1, own);
  }
  parallel_for(m, 64, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      if (sign[static_cast<size_t>(j)] > 0) continue;
      double* x = a + j * stride;
      for (int64_t i = 0; i < n; ++i) x[i] = -x[i];
    }
  });
}

void orthonormal_by_cholesky(double* a, int64_t n, int64_t m) {
  RWKV_ASSERT(n >= m && m >= 1, n, " x ", m);
  const double estimate = cholesky_pass(a, n, m);
  if (estimate * estimate > 100) cholesky_pass(a, n, m);
}

}  // namespace rwkv::cpu
