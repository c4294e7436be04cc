// f32 matrix products against double sums: every transpose, mode, path (tiny, few rows, tiled) and
// padded strides. Every element must obey the worst-case bound of k + 1 rounded multiply-adds,
//   |c - exact| <= (k + 3) u (sum |a| |b| + |c0|),   u = 2^-24   (Higham 2002, ch. 3).

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/core/bf16.h"
#include "kernels/core/context.h"
#include "kernels/core/gemm.h"
#include "kernels/core/packed_rows.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "tests/support/compare.h"
#include "tests/support/guarded_buffer.h"

namespace rwkv::test {
namespace {

struct Sizes {
  int64_t m, n, k;
};

class Problem {
 public:
  Problem(Sizes s, bool trans_a, bool trans_b, int64_t pad, size_t misalign = 0)
      : s_(s),
        call_{.m = s.m,
              .n = s.n,
              .k = s.k,
              .lda = (trans_a ? s.m : s.k) + pad,
              .ldb = (trans_b ? s.k : s.n) + pad,
              .ldc = s.n + pad,
              .trans_a = trans_a,
              .trans_b = trans_b},
        a_(TensorSpec{trans_a ? s.k : s.m, call_.lda}, misalign),
        b_(TensorSpec{trans_b ? s.n : s.k, call_.ldb}, misalign),
        c_(TensorSpec{s.m, call_.ldc}, misalign) {
    // The padding keeps its NaNs: reading it would show.
    fill(a_, trans_a ? s.m : s.k, call_.lda, 1);
    fill(b_, trans_b ? s.k : s.n, call_.ldb, 2);
  }

  std::vector<float> run(Accum mode) {
    if (mode == Accum::kAdd) fill(c_, s_.n, call_.ldc, 3);
    start_.assign(c_.f32().begin(), c_.f32().end());
    call_.mode = mode;
    call_.a = a_.view().data;
    call_.b = b_.view().data;
    call_.c = c_.view().data;
    gemm(ctx_, call_);
    return {c_.f32().begin(), c_.f32().end()};
  }

  void check(Accum mode) {
    const std::vector<float> got = run(mode);
    EXPECT_TRUE(c_.intact("c"));
    for (int64_t i = 0; i < s_.m; ++i)
      for (int64_t j = 0; j < call_.ldc; ++j) {
        const auto at = static_cast<size_t>(i * call_.ldc + j);
        if (j >= s_.n) {
          ASSERT_TRUE(std::isnan(got[at])) << "padding of row " << i << " was written";
          continue;
        }
        double exact = mode == Accum::kAdd ? static_cast<double>(start_[at]) : 0.0;
        double size = std::fabs(exact);
        for (int64_t x = 0; x < s_.k; ++x) {
          const double product = element(a_, call_.trans_a, i, x, call_.lda) *
                                 element(b_, call_.trans_b, x, j, call_.ldb);
          exact += product;
          size += std::fabs(product);
        }
        const double limit = static_cast<double>(s_.k + 3) * std::ldexp(size, -24);
        ASSERT_LE(std::fabs(static_cast<double>(got[at]) - exact), limit)
            << s_.m << " x " << s_.n << " x " << s_.k << (call_.trans_a ? " ta" : "")
            << (call_.trans_b ? " tb" : "") << " at " << i << ", " << j << ": got " << got[at]
            << ", expected " << exact;
      }
  }

 private:
  static double element(GuardedBuffer& m, bool transposed, int64_t i, int64_t j, int64_t ld) {
    return static_cast<double>(m.f32()[static_cast<size_t>(transposed ? j * ld + i : i * ld + j)]);
  }
  static void fill(GuardedBuffer& m, int64_t columns, int64_t ld, uint64_t seed) {
    const Rng rng(seed, hash_name("gemm test"));
    auto v = m.f32();
    for (size_t i = 0; i < v.size(); ++i)
      if (static_cast<int64_t>(i) % ld < columns) v[i] = static_cast<float>(rng.normal(i));
  }

  Sizes s_;
  GemmCall call_;
  GuardedBuffer a_, b_, c_;
  std::vector<float> start_;
  Context ctx_;
};

// Tiny, few rows (with and without a remainder of the vector loops), one and several tiles.
constexpr Sizes kSizes[] = {{1, 1, 1},    {3, 5, 7},     {8, 8, 8},      {1, 9, 100},
                            {1, 300, 65}, {2, 33, 64},   {3, 17, 31},    {4, 270, 40},
                            {5, 7, 300},  {40, 1, 50},   {1, 1, 500},    {33, 65, 1},
                            {2, 2, 900},  {130, 50, 33}, {257, 193, 20}, {300, 400, 17}};

TEST(Gemm, EveryTransposeModeAndStrideMatchesDouble) {
  for (const Sizes s : kSizes)
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const int64_t pad : {0, 3})
          for (const Accum mode : {Accum::kWrite, Accum::kAdd}) {
            Problem(s, ta, tb, pad).check(mode);
            if (HasFatalFailure()) return;
          }
}

TEST(Gemm, ThreadsAndAddressesDoNotMatter) {
  for (const Sizes s : {Sizes{300, 800, 50}, {1, 3000, 70}, {4, 700, 64}, {600, 130, 129}})
    for (const bool ta : {false, true})
      for (const bool tb : {false, true}) {
        std::vector<float> want;
        const int before = num_threads();
        for (const int threads : {1, 2, 3})
          for (const size_t misalign : {size_t{0}, size_t{5}}) {
            set_num_threads(threads);
            const auto got = Problem(s, ta, tb, 0, misalign).run(Accum::kAdd);
            if (want.empty()) want = got;
            EXPECT_TRUE(bit_equal(std::span<const float>(got), std::span<const float>(want),
                                  str(s.m, " x ", s.n, " x ", s.k, " with ", threads,
                                      " threads, misaligned by ", misalign)));
          }
        set_num_threads(before);
      }
}

TEST(Gemm, EmptyProducts) {
  Context ctx;
  std::vector<float> c(6, 5.0f);
  gemm_nn(ctx, 0, 3, 4, nullptr, nullptr, nullptr, Accum::kWrite);
  gemm_nn(ctx, 3, 0, 4, nullptr, nullptr, nullptr, Accum::kWrite);
  gemm_nn(ctx, 2, 3, 0, nullptr, nullptr, c.data(), Accum::kAdd);
  EXPECT_EQ(c, std::vector<float>(6, 5.0f));
  gemm_nn(ctx, 2, 3, 0, nullptr, nullptr, c.data(), Accum::kWrite);
  EXPECT_EQ(c, std::vector<float>(6, 0.0f));
}

TEST(Gemm, SkipTouchesNothing) {
  Context ctx;
  gemm_nt(ctx, 5, 5, 5, nullptr, nullptr, nullptr, Accum::kSkip);
}

TEST(Gemm, ShortFormsAreTheStoredLayouts) {
  // a = [1 2; 3 4], b = [5 6; 7 8], row-major.
  const std::vector<float> a{1, 2, 3, 4}, b{5, 6, 7, 8};
  std::vector<float> c(4);
  Context ctx;
  gemm_nn(ctx, 2, 2, 2, a.data(), b.data(), c.data(), Accum::kWrite);
  EXPECT_EQ(c, (std::vector<float>{19, 22, 43, 50}));
  gemm_nt(ctx, 2, 2, 2, a.data(), b.data(), c.data(), Accum::kWrite);
  EXPECT_EQ(c, (std::vector<float>{17, 23, 39, 53}));
  gemm_tn(ctx, 2, 2, 2, a.data(), b.data(), c.data(), Accum::kAdd);
  EXPECT_EQ(c, (std::vector<float>{17 + 26, 23 + 30, 39 + 38, 53 + 44}));
}

TEST(Gemm, NaNAndInfinityComeThrough) {
  Context ctx;
  for (const int64_t m : {1, 2, 200}) {
    std::vector<float> a(static_cast<size_t>(m * 64), 1.0f), b(64 * 200, 1.0f);
    std::vector<float> c(static_cast<size_t>(m * 200));
    b[3 * 64 + 7] = std::numeric_limits<float>::quiet_NaN();
    b[5 * 64 + 9] = std::numeric_limits<float>::infinity();
    gemm_nt(ctx, m, 200, 64, a.data(), b.data(), c.data(), Accum::kWrite);
    EXPECT_TRUE(std::isnan(c[3]));
    EXPECT_TRUE(std::isinf(c[5]));
    EXPECT_EQ(c[4], 64.0f);
  }
}

TEST(Gemm, WrongCallsAreRefused) {
  Context ctx;
  float x = 0;
  const GemmCall good{
      .m = 1, .n = 1, .k = 1, .a = &x, .b = &x, .c = &x, .lda = 1, .ldb = 1, .ldc = 1};
  GemmCall bad = good;
  bad.dtype = DType::kBF16;
  EXPECT_THROW(gemm(ctx, bad), DTypeError);
  bad = good;
  bad.lda = 0;
  EXPECT_THROW(gemm(ctx, bad), InternalError);
  bad = good;
  bad.m = -1;
  EXPECT_THROW(gemm(ctx, bad), InternalError);
}

TEST(Gemm, TraceCountsCallsAndFlops) {
  Context ctx;
  ctx.tracer().enable(true);
  std::vector<float> a(20 * 30), b(30 * 40), c(20 * 40);
  for (int i = 0; i < 3; ++i) gemm_nn(ctx, 20, 40, 30, a.data(), b.data(), c.data(), Accum::kWrite);
  const auto& row = ctx.tracer().rows().at("gemm");
  EXPECT_EQ(row.calls, 3);
  EXPECT_EQ(row.flops, 3 * 2.0 * 20 * 40 * 30);
  EXPECT_GT(row.seconds, 0);
}

/// B as `type` and what those numbers are in f32.
struct Packed {
  Packed(int64_t rows, int64_t cols, DType type, uint64_t stream)
      : expanded(static_cast<size_t>(rows * cols)),
        spec(packed_spec(TensorSpec({rows, cols}), type)),
        bytes(spec.bytes()) {
    Rng rng(5, stream);
    for (float& x : expanded) x = static_cast<float>(rng.normal(rng.next_u64()));
    for (int64_t r = 0; r < rows; ++r) {
      float* x = expanded.data() + r * cols;
      if (r == 1) std::fill(x, x + cols, 0.0F);
      if (type == DType::kBF16) {
        for (int64_t j = 0; j < cols; ++j) {
          const BF16 b = to_bf16(x[j]);
          x[j] = to_float(b);
          std::memcpy(bytes.data() + 2 * (r * cols + j), &b, 2);
        }
      } else {
        auto* q = reinterpret_cast<int8_t*>(bytes.data()) + r * (cols + kRowScaleBytes);
        pack_row(x, cols, q);
        const float s = row_scale(q, cols);
        for (int64_t j = 0; j < cols; ++j) {
          EXPECT_LE(std::fabs(x[j] - s * static_cast<float>(q[j])), 0.501F * s);
          x[j] = s * static_cast<float>(q[j]);
        }
      }
    }
  }
  std::vector<float> expanded;
  TensorSpec spec;
  std::vector<std::byte> bytes;
};

// Few rows, tiny and tiled products of packed matrices are those of the numbers they hold.
TEST(PackedGemm, IsTheProductOfTheNumbersThatItHolds) {
  Context ctx;
  constexpr Sizes kShapes[] = {{1, 70, 100}, {3, 33, 64},   {4, 16, 7},     {5, 3, 4},
                               {7, 1, 20},   {20, 300, 90}, {300, 500, 77}, {2, 600, 1}};
  for (const DType type : {DType::kBF16, DType::kI8})
    for (const Sizes s : kShapes)
      for (const bool transposed : {true, false})
        for (const Accum mode : {Accum::kWrite, Accum::kAdd}) {
          SCOPED_TRACE(testing::Message() << dtype_name(type) << " " << s.m << " x " << s.n << " x "
                                          << s.k << " " << transposed << static_cast<int>(mode));
          Packed b(transposed ? s.n : s.k, transposed ? s.k : s.n, type, 9);
          std::vector<float> a(static_cast<size_t>(s.m * s.k)),
              want(static_cast<size_t>(s.m * s.n));
          Rng rng(6, 1);
          for (float& x : a) x = static_cast<float>(rng.normal(rng.next_u64()));
          for (float& x : want) x = mode == Accum::kAdd ? 0.5F : NAN;
          std::vector<float> got = want;
          const TensorView w(b.bytes.data(), b.spec);
          if (transposed) {
            gemm_nt(ctx, s.m, a.data(), w, got.data(), mode);
            gemm_nt(ctx, s.m, s.n, s.k, a.data(), b.expanded.data(), want.data(), mode);
          } else {
            gemm_nn(ctx, s.m, a.data(), w, got.data(), mode);
            gemm_nn(ctx, s.m, s.n, s.k, a.data(), b.expanded.data(), want.data(), mode);
          }
          const double limit = 1e-6 * std::sqrt(static_cast<double>(s.k));
          for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], limit) << i;
        }
}

TEST(PackedGemm, OtherTypesAreRefused) {
  EXPECT_THROW(packed_spec(TensorSpec({2, 3}), DType::kF16), ConfigError);
  Context ctx;
  float c = 0, a = 1;
  uint16_t b = 0;
  EXPECT_THROW(
      gemm_nt(ctx, 1, &a, TensorView(&b, TensorSpec({1, 1}, DType::kF16)), &c, Accum::kWrite),
      DTypeError);
}

}  // namespace
}  // namespace rwkv::test
