// Products of few rows, with every instruction set that this processor has, against sums in double,
// and what they promise: bits that depend neither on bounds, nor on m, nor on the other rows.

#include "kernels/core/few_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/core/bf16.h"
#include "kernels/core/packed_rows.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"

namespace rwkv::test {
namespace {

/// A (m, k), B with k (trans) or n weights per row, and the numbers that B stands for.
struct Case {
  int64_t m, n, k;
  DType type;
  bool trans_b;
  std::vector<float> a, b;
  std::vector<std::byte> packed;
  int64_t row_bytes;

  Case(int64_t m_, int64_t n_, int64_t k_, DType type_, bool trans)
      : m(m_), n(n_), k(k_), type(type_), trans_b(trans) {
    const Rng rng(7, hash_name("few rows"));
    a.resize(static_cast<size_t>(m * k));
    for (size_t i = 0; i < a.size(); ++i)
      a[i] = i % 3 == 1 ? 0.0F : static_cast<float>(rng.normal(i));
    const int64_t rows = trans ? n : k, cols = trans ? k : n;
    b.resize(static_cast<size_t>(rows * cols));
    for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(rng.normal(a.size() + i));
    row_bytes =
        cols * static_cast<int64_t>(dtype_bytes(type)) + (type == DType::kI8 ? kRowScaleBytes : 0);
    packed.resize(static_cast<size_t>(rows * row_bytes));
    for (int64_t r = 0; r < rows; ++r) pack(&b[static_cast<size_t>(r * cols)], cols, r);
  }

  /// What must not matter and would show if it were read: the weights of row r.
  void poison(int64_t r) {
    std::memset(&packed[static_cast<size_t>(r * row_bytes)], 0xff, static_cast<size_t>(row_bytes));
  }

  FewRowsCall call(std::vector<float>& c, bool add) const {
    return {.m = m,
            .n = n,
            .k = k,
            .a = a.data(),
            .lda = k,
            .b = packed.data(),
            .row_bytes = row_bytes,
            .b_dtype = type,
            .c = c.data(),
            .ldc = n,
            .add = add};
  }
  std::vector<float> run(const FewRowsKernels& kernels, std::vector<int64_t> cuts,
                         bool add = false) const {
    std::vector<float> c(static_cast<size_t>(m * n), add ? 2.0F : -7.0F);
    int64_t begin = 0;
    cuts.push_back(n);
    for (const int64_t end : cuts) {
      (trans_b ? kernels.dots : kernels.updates)(call(c, add), begin, end);
      begin = end;
    }
    return c;
  }
  std::string name(const FewRowsKernels& kernels) const {
    return str(kernels.name, " ", dtype_name(type), " ", m, " x ", n, " x ", k,
               trans_b ? " trans" : "");
  }

 private:
  void pack(float* x, int64_t cols, int64_t r) {
    std::byte* to = &packed[static_cast<size_t>(r * row_bytes)];
    if (type == DType::kI8) {
      auto* row = reinterpret_cast<int8_t*>(to);
      pack_row(x, cols, row);
      for (int64_t j = 0; j < cols; ++j) x[j] = row_scale(row, cols) * static_cast<float>(row[j]);
    } else if (type == DType::kBF16) {
      for (int64_t j = 0; j < cols; ++j) {
        const BF16 value = to_bf16(x[j]);
        std::memcpy(to + 2 * j, &value, 2);
        x[j] = to_float(value);
      }
    } else {
      std::memcpy(to, x, static_cast<size_t>(row_bytes));
    }
  }
};

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kI8};

/// Widths for every block of every kernel and its remainders; k beyond one list of rows.
constexpr int64_t kSizes[][2] = {{1, 1},    {3, 7},    {33, 31},   {63, 100},
                                 {384, 64}, {515, 97}, {18, 1100}, {800, 20}};

TEST(FewRows, EveryKernelMatchesDouble) {
  for (const FewRowsKernels& kernels : few_rows_kernels())
    for (const DType type : kTypes)
      for (const bool trans : {true, false})
        for (const bool add : {true, false})
          for (const auto& [n, k] : kSizes)
            for (int64_t m = 1; m <= kFewRows; ++m) {
              const Case x(m, n, k, type, trans);
              const std::vector<float> got = x.run(kernels, {}, add);
              for (int64_t i = 0; i < m; ++i)
                for (int64_t j = 0; j < n; ++j) {
                  double exact = add ? 2.0 : 0.0, size = exact;
                  for (int64_t y = 0; y < k; ++y) {
                    const double product =
                        static_cast<double>(x.a[static_cast<size_t>(i * k + y)]) *
                        static_cast<double>(
                            x.b[static_cast<size_t>(trans ? j * k + y : y * n + j)]);
                    exact += product;
                    size += std::fabs(product);
                  }
                  // Two more roundings where a scale is applied.
                  const double limit = static_cast<double>(k + 5) * std::ldexp(size, -24);
                  const double c = got[static_cast<size_t>(i * n + j)];
                  ASSERT_LE(std::fabs(c - exact), limit)
                      << x.name(kernels) << " at " << i << ", " << j;
                }
            }
}

TEST(FewRows, BoundsAndOtherRowsDoNotMatter) {
  for (const FewRowsKernels& kernels : few_rows_kernels())
    for (const DType type : kTypes)
      for (const bool trans : {true, false}) {
        const Case all(4, 800, 333, type, trans);
        const std::vector<float> want = all.run(kernels, {});
        EXPECT_EQ(want, all.run(kernels, {32, 416, 448, 736})) << all.name(kernels);
        for (int64_t m = 1; m < 4; ++m)
          for (int64_t first = 0; first + m <= 4; ++first) {
            Case part(m, 800, 333, type, trans);
            part.packed = all.packed;
            part.a.assign(all.a.begin() + first * 333, all.a.begin() + (first + m) * 333);
            const std::vector<float> got = part.run(kernels, {});
            EXPECT_EQ(0, std::memcmp(got.data(), &want[static_cast<size_t>(first * 800)],
                                     got.size() * sizeof(float)))
                << part.name(kernels) << " from row " << first;
          }
      }
}

TEST(FewRows, ThreadsDoNotMatter) {
  const int before = num_threads();
  for (const DType type : kTypes)
    for (const bool trans : {true, false}) {
      const Case x(2, 1000, 700, type, trans);
      const std::vector<float> want = x.run(few_rows_kernels()[0], {});
      for (const int threads : {1, 2, 3, 7}) {
        set_num_threads(threads);
        std::vector<float> c(want.size());
        few_rows(x.call(c, false), trans);
        EXPECT_EQ(want, c) << x.name(few_rows_kernels()[0]) << ", " << threads << " threads";
      }
    }
  set_num_threads(before);
}

TEST(FewRows, UpdatesSkipRowsWithoutAFactor) {
  for (const FewRowsKernels& kernels : few_rows_kernels())
    for (const DType type : {DType::kF32, DType::kBF16})
      for (const int64_t m : {1, 3}) {
        Case x(m, 450, 200, type, false);
        for (int64_t y = 0; y < 200; y += 4)
          for (int64_t i = 0; i < m; ++i) x.a[static_cast<size_t>(i * 200 + y)] = 0;
        const std::vector<float> want = x.run(kernels, {});
        for (int64_t y = 0; y < 200; y += 4) x.poison(y);  // all bits set: a NaN
        EXPECT_EQ(want, x.run(kernels, {})) << x.name(kernels);
      }
}

TEST(FewRows, NanOfAFactorStays) {
  for (const FewRowsKernels& kernels : few_rows_kernels())
    for (const DType type : kTypes)
      for (const bool trans : {true, false}) {
        Case x(1, 40, 50, type, trans);
        x.a[49] = std::numeric_limits<float>::quiet_NaN();
        for (const float c : x.run(kernels, {})) EXPECT_TRUE(std::isnan(c)) << x.name(kernels);
      }
}

}  // namespace
}  // namespace rwkv::test
