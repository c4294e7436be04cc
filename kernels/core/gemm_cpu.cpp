// f32 matrix products on Eigen's single-threaded GEMM, cut into tiles of C that threads share.
//
// Work split: C is cut into tiles of at most 256 x 768, halved (down to 192 columns and 128 rows)
// while there are fewer than kTiles of them. Every tile is one Eigen product over the whole of k,
// so an element's summation order depends on m, n and k alone. A tile costs packing of its rows of
// A and columns of B, which are made f32 first where they are bf16 or int8. Measured on an AVX-512
// core, in shares of Eigen's rate at 1024^3: 256 x 192 tiles reach 94 to 100 % at m = 512, k = 768
// and 3072, 128 x 192 only 84 to 93 %; with A transposed (weight gradients) the columns matter: 128
// x 768 reach 92 to 96 %, 256 x 384 89 to 95
// %. Few rows (decoding) are limited by reading the weights: few_rows.h.

#ifndef EIGEN_DONT_PARALLELIZE
#define EIGEN_DONT_PARALLELIZE
#endif

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "kernels/core/backend.h"
#include "kernels/core/context.h"
#include "kernels/core/error.h"
#include "kernels/core/few_rows.h"
#include "kernels/core/gemm.h"
#include "kernels/core/packed_rows.h"
#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

using Stride = Eigen::OuterStride<>;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Input = Eigen::Map<const RowMajor, 0, Stride>;
using Output = Eigen::Map<RowMajor, 0, Stride>;

struct Product {
  int64_t m, n, k;
  const float *a, *b;  // b: the bytes of B, whatever its type
  DType b_dtype;
  float* c;
  int64_t lda, ldb, ldc;
  bool trans_a, trans_b, add;
};

constexpr int64_t kMaxRows = 256, kMinRows = 128;
constexpr int64_t kMaxCols = 768, kMinCols = 192;
constexpr int64_t kTiles = 6;

int64_t pieces(int64_t n, int64_t size) {
  return (n + size - 1) / size;
}

/// Start of piece `t` of `count` nearly equal pieces of [0, n), at a multiple of 16 (one vector).
int64_t bound(int64_t n, int64_t count, int64_t t) {
  return t == count ? n : t * n / count / 16 * 16;
}

/// Rows of B as their type has them.
template <class T>
struct Rows;
template <>
struct Rows<float> {
  explicit Rows(const Product& p) : data(p.b), stride(p.ldb) {}
  const float* row(int64_t i) const { return data + i * stride; }
  static float value(float x) { return x; }
  float scale(int64_t) const { return 1; }
  const float* data;
  int64_t stride;
};
template <>
struct Rows<BF16> {
  explicit Rows(const Product& p) : data(reinterpret_cast<const uint16_t*>(p.b)), stride(p.ldb) {}
  const uint16_t* row(int64_t i) const { return data + i * stride; }
  static float value(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }
  float scale(int64_t) const { return 1; }
  const uint16_t* data;
  int64_t stride;
};
template <>
struct Rows<int8_t> {
  explicit Rows(const Product& p)
      : data(reinterpret_cast<const int8_t*>(p.b)), stride(p.ldb), cols(p.ldb - kRowScaleBytes) {}
  const int8_t* row(int64_t i) const { return data + i * stride; }
  static float value(int8_t x) { return static_cast<float>(x); }
  float scale(int64_t i) const { return row_scale(row(i), cols); }
  const int8_t* data;
  int64_t stride, cols;
};

/// Columns [from, from + cols) of rows [begin, begin + count) of B as f32, packed.
template <class T>
void expand(const Product& p, int64_t begin, int64_t count, int64_t from, int64_t cols, float* to) {
  const Rows<T> rows(p);
  for (int64_t i = 0; i < count; ++i) {
    const auto* b = rows.row(begin + i) + from;
    const float scale = rows.scale(begin + i);
    float* __restrict x = to + i * cols;
    for (int64_t j = 0; j < cols; ++j) x[j] = scale * Rows<T>::value(b[j]);
  }
}

void expand_any(const Product& p, int64_t begin, int64_t count, int64_t from, int64_t cols,
                float* to) {
  (p.b_dtype == DType::kBF16 ? expand<BF16> : expand<int8_t>)(p, begin, count, from, cols, to);
}

void tile(const Product& p, int64_t i, int64_t rows, int64_t j, int64_t cols) {
  Output c(p.c + i * p.ldc + j, rows, cols, Stride(p.ldc));
  const auto multiply = [&](const auto& a, const auto& b) {
    if (p.add)
      c.noalias() += a * b;
    else
      c.noalias() = a * b;
  };
  const Input a = p.trans_a ? Input(p.a + i, p.k, rows, Stride(p.lda))
                            : Input(p.a + i * p.lda, rows, p.k, Stride(p.lda));
  std::vector<float> expanded;
  const float* panel = p.trans_b ? p.b + j * p.ldb : p.b + j;
  int64_t stride = p.ldb;
  if (p.b_dtype != DType::kF32) {
    expanded.resize(static_cast<size_t>(cols * p.k));
    if (p.trans_b)
      expand_any(p, j, cols, 0, p.k, expanded.data());
    else
      expand_any(p, 0, p.k, j, cols, expanded.data());
    panel = expanded.data();
    stride = p.trans_b ? p.k : cols;
  }
  const Input b =
      p.trans_b ? Input(panel, cols, p.k, Stride(stride)) : Input(panel, p.k, cols, Stride(stride));
  if (p.trans_a && p.trans_b)
    multiply(a.transpose(), b.transpose());
  else if (p.trans_a)
    multiply(a.transpose(), b);
  else if (p.trans_b)
    multiply(a, b.transpose());
  else
    multiply(a, b);
}

void tiled(const Product& p) {
  int64_t down = pieces(p.m, kMaxRows), across = pieces(p.n, kMaxCols);
  while (down * across < kTiles) {
    const bool more_rows = down < pieces(p.m, kMinRows), more_cols = across < pieces(p.n, kMinCols);
    if (more_rows && (p.trans_a || !more_cols))
      down = std::min(2 * down, pieces(p.m, kMinRows));
    else if (more_cols)
      across = std::min(2 * across, pieces(p.n, kMinCols));
    else
      break;
  }
  parallel_for(down * across, 1, [&](int64_t t, int64_t) {
    // Consecutive tiles share columns of B, usually the larger operand.
    const int64_t i = bound(p.m, down, t % down), j = bound(p.n, across, t / down);
    tile(p, i, bound(p.m, down, t % down + 1) - i, j, bound(p.n, across, t / down + 1) - j);
  });
}

/// Products too small for Eigen's kernel. Its own fallback for them picks loops by the alignment of
/// the operands, so its rounding would depend on addresses.
void tiny(const Product& p) {
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t j = 0; j < p.n; ++j) {
      float sum = 0;
      for (int64_t x = 0; x < p.k; ++x)
        sum += (p.trans_a ? p.a[x * p.lda + i] : p.a[i * p.lda + x]) *
               (p.trans_b ? p.b[j * p.ldb + x] : p.b[x * p.ldb + j]);
      float& c = p.c[i * p.ldc + j];
      c = (p.add ? c : 0.0f) + sum;
    }
}

/// At most kFewRows rows of A: B is read once, at the speed of memory.
void few(const Product& p) {
  const auto element = static_cast<int64_t>(dtype_bytes(p.b_dtype));
  few_rows({.m = p.m,
            .n = p.n,
            .k = p.k,
            .a = p.a,
            .lda = p.lda,
            .b = reinterpret_cast<const std::byte*>(p.b),
            .row_bytes = p.ldb * element,
            .b_dtype = p.b_dtype,
            .c = p.c,
            .ldc = p.ldc,
            .add = p.add},
           p.trans_b);
}

void check(const GemmCall& g) {
  RWKV_CHECK(g.dtype == DType::kF32, DTypeError, "matrix product on the CPU: found ",
             dtype_name(g.dtype), ", expected f32");
  RWKV_CHECK(g.b_dtype == DType::kF32 || g.b_dtype == DType::kBF16 || g.b_dtype == DType::kI8,
             DTypeError, "matrix product on the CPU: found weights of ", dtype_name(g.b_dtype),
             ", expected f32, bf16 or i8");
  RWKV_ASSERT(g.alpha == nullptr, "gemm: alpha is for CUDA");
  RWKV_ASSERT(g.m >= 0 && g.n >= 0 && g.k >= 0, "gemm ", g.m, " x ", g.n, " x ", g.k);
  RWKV_ASSERT(g.lda >= (g.trans_a ? g.m : g.k), "gemm: lda ", g.lda, " for ", g.m, " x ", g.k);
  RWKV_ASSERT(g.ldb >= (g.trans_b ? g.k : g.n), "gemm: ldb ", g.ldb, " for ", g.k, " x ", g.n);
  RWKV_ASSERT(g.ldc >= g.n, "gemm: ldc ", g.ldc, " for ", g.m, " x ", g.n);
}

}  // namespace

void measure_gemm_algorithms(Context& ctx, bool on) {
  if (ctx.device() == Device::kCuda) backend::cuda_measure_gemms(ctx.cuda(), on);
}

std::string export_gemm_algorithms(const Context& ctx, GemmChoices which) {
  return ctx.device() == Device::kCuda ? backend::cuda_export_gemms(ctx.cuda(), which) : "";
}

size_t import_gemm_algorithms(Context& ctx, std::string_view text) {
  return ctx.device() == Device::kCuda ? backend::cuda_import_gemms(ctx.cuda(), text) : 0;
}

void gemm(Context& ctx, const GemmCall& g) {
  if (g.mode == Accum::kSkip) return;
  if (ctx.device() == Device::kCuda) return backend::cuda_gemm(ctx, g);
  check(g);
  if (g.m == 0 || g.n == 0) return;
  const TraceScope trace(
      ctx.tracer(), "gemm",
      2.0 * static_cast<double>(g.m) * static_cast<double>(g.n) * static_cast<double>(g.k));
  if (g.mode == Accum::kAdd && g.addend != nullptr && g.addend != g.c)
    for (int64_t i = 0; i < g.m; ++i)
      std::memcpy(static_cast<float*>(g.c) + i * g.ldc,
                  static_cast<const float*>(g.addend) + i * g.ldc,
                  static_cast<size_t>(g.n) * sizeof(float));
  const Product p{g.m,
                  g.n,
                  g.k,
                  static_cast<const float*>(g.a),
                  static_cast<const float*>(g.b),
                  g.b_dtype,
                  static_cast<float*>(g.c),
                  g.lda,
                  g.ldb,
                  g.ldc,
                  g.trans_a,
                  g.trans_b,
                  g.mode == Accum::kAdd};
  if (g.k == 0) {
    if (!p.add)
      for (int64_t i = 0; i < p.m; ++i)
        std::memset(p.c + i * p.ldc, 0, static_cast<size_t>(p.n) * sizeof(float));
  } else if (p.m <= kFewRows && !p.trans_a) {
    few(p);
  } else if (p.m * p.n * p.k <= 8 * 8 * 8 || p.m == 1 || p.n == 1 || p.m + p.n + p.k < 20) {
    if (p.b_dtype == DType::kF32) return tiny(p);
    Product plain = p;
    plain.ldb = p.trans_b ? p.k : p.n;
    std::vector<float> b(static_cast<size_t>(p.n * p.k));
    expand_any(p, 0, p.trans_b ? p.n : p.k, 0, plain.ldb, b.data());
    plain.b = b.data();
    tiny(plain);
  } else {
    tiled(p);
  }
}

void gemm_nt(Context& ctx, int64_t m, int64_t n, int64_t k, const float* a, const float* b,
             float* c, Accum mode) {
  gemm(ctx, {.m = m,
             .n = n,
             .k = k,
             .a = a,
             .b = b,
             .c = c,
             .lda = k,
             .ldb = k,
             .ldc = n,
             .trans_b = true,
             .mode = mode});
}

void gemm_nt(Context& ctx, int64_t m, const float* a, const TensorView& w, float* c, Accum mode) {
  const int64_t n = w.dim(0), k = packed_columns(w.spec);
  gemm(ctx, {.m = m,
             .n = n,
             .k = k,
             .a = a,
             .b = w.data,
             .c = c,
             .lda = k,
             .ldb = w.last(),
             .ldc = n,
             .trans_b = true,
             .mode = mode,
             .b_dtype = w.spec.dtype});
}

void gemm_nn(Context& ctx, int64_t m, const float* a, const TensorView& b, float* c, Accum mode) {
  const int64_t k = b.dim(0), n = packed_columns(b.spec);
  gemm(ctx, {.m = m,
             .n = n,
             .k = k,
             .a = a,
             .b = b.data,
             .c = c,
             .lda = k,
             .ldb = b.last(),
             .ldc = n,
             .mode = mode,
             .b_dtype = b.spec.dtype});
}

void gemm_nn(Context& ctx, int64_t m, int64_t n, int64_t k, const float* a, const float* b,
             float* c, Accum mode) {
  gemm(
      ctx,
      {.m = m, .n = n, .k = k, .a = a, .b = b, .c = c, .lda = k, .ldb = n, .ldc = n, .mode = mode});
}

void gemm_tn(Context& ctx, int64_t m, int64_t n, int64_t k, const float* a, const float* b,
             float* c, Accum mode) {
  gemm(ctx, {.m = m,
             .n = n,
             .k = k,
             .a = a,
             .b = b,
             .c = c,
             .lda = m,
             .ldb = n,
             .ldc = n,
             .trans_a = true,
             .mode = mode});
}

}  // namespace rwkv
