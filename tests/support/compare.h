#pragma once
/// The one comparison of numeric tests: passes only if `err <= tol` holds for the worst element,
/// the worst row and the relative L2 norm, so a NaN anywhere fails.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <sstream>
#include <string>

namespace rwkv::test {

/// Limits of the three measures. A negative limit switches its measure off (NaN still fails).
struct Tolerance {
  double element;  ///< largest |got - want| over the largest |want| of the tensor
  double row;      ///< largest over rows of |got - want|_2 over |want|_2, see `row_floor`
  double rel;      ///< |got - want|_2 over |want|_2 of the tensor

  static Tolerance all(double t) { return {t, t, t}; }
};

struct CompareOptions {
  std::string what;        ///< named in the message
  int64_t row_length = 0;  ///< elements of a row; 0: the tensor is one row
  uint64_t seed = 0;       ///< printed, so that a failure can be run again
  /// Rows smaller than this part of the root-mean-square row are measured against that part of it:
  /// a row of zeros with rounding noise is no error. 0 compares every row by its own norm.
  double row_floor = 1e-3;
};

/// What was measured; filled also when the comparison passes.
struct Difference {
  double element = 0, row = 0, rel = 0;
  int64_t element_index = 0, row_index = 0;
};

namespace detail {

/// error over scale, where a zero scale admits a zero error only.
inline double ratio(double error, double scale) {
  if (error == 0.0) return 0.0;
  return scale > 0.0 ? error / scale : std::numeric_limits<double>::infinity();
}

/// worst = max(worst, value), where a NaN is the worst of all.
inline bool worse(double value, double worst) {
  return !(value <= worst) && !std::isnan(worst);
}

}  // namespace detail

/// The three measures of got against want (equal, non-zero sizes).
template <class Got, class Want>
Difference measure(std::span<const Got> got, std::span<const Want> want,
                   const CompareOptions& options = {}) {
  Difference d;
  const auto n = static_cast<int64_t>(want.size());
  const int64_t length = options.row_length > 0 ? options.row_length : n;
  const auto error_at = [&](int64_t i) {
    const auto u = static_cast<size_t>(i);
    return static_cast<double>(got[u]) - static_cast<double>(want[u]);
  };
  double largest = 0, norm2 = 0, error2 = 0;
  for (const Want w : want) {
    largest = std::max(largest, std::fabs(static_cast<double>(w)));
    norm2 += static_cast<double>(w) * static_cast<double>(w);
  }
  const double rows = static_cast<double>((n + length - 1) / length);
  const double floor = options.row_floor * std::sqrt(norm2 / rows);
  for (int64_t begin = 0, row = 0; begin < n; begin += length, ++row) {
    double row_error2 = 0, row_norm2 = 0;
    for (int64_t i = begin; i < std::min(n, begin + length); ++i) {
      const double e = error_at(i), w = static_cast<double>(want[static_cast<size_t>(i)]);
      row_error2 += e * e;
      row_norm2 += w * w;
      const double element = detail::ratio(std::fabs(e), largest);
      if (detail::worse(element, d.element)) {
        d.element = element;
        d.element_index = i;
      }
    }
    error2 += row_error2;
    const double value =
        detail::ratio(std::sqrt(row_error2), std::max(std::sqrt(row_norm2), floor));
    if (detail::worse(value, d.row)) {
      d.row = value;
      d.row_index = row;
    }
  }
  d.rel = detail::ratio(std::sqrt(error2), std::sqrt(norm2));
  return d;
}

/// Compares got with want. Usage: EXPECT_TRUE(matches(got, want, Tolerance::all(1e-6), {...})).
/// `measured`, if given, receives what was seen.
template <class Got, class Want>
testing::AssertionResult matches(std::span<const Got> got, std::span<const Want> want,
                                 const Tolerance& tol, const CompareOptions& options = {},
                                 Difference* measured = nullptr) {
  if (got.size() != want.size())
    return testing::AssertionFailure()
           << options.what << ": " << got.size() << " elements, expected " << want.size();
  if (want.empty()) return testing::AssertionFailure() << options.what << ": nothing to compare";
  const Difference d = measure(got, want, options);
  if (measured != nullptr) *measured = d;
  const auto good = [](double err, double limit) {
    return limit < 0 ? !std::isnan(err) : err <= limit;
  };
  if (good(d.element, tol.element) && good(d.row, tol.row) && good(d.rel, tol.rel))
    return testing::AssertionSuccess();
  const auto at = static_cast<size_t>(d.element_index);
  std::ostringstream text;
  text.precision(9);
  text << options.what << " (seed " << options.seed << "): worst element " << d.element
       << " (limit " << tol.element << ") at index " << d.element_index << ": got "
       << static_cast<double>(got[at]) << ", expected " << static_cast<double>(want[at])
       << "; worst row " << d.row << " (limit " << tol.row << ") at row " << d.row_index
       << "; relative L2 " << d.rel << " (limit " << tol.rel << ")";
  return testing::AssertionFailure() << text.str();
}

/// Equal bit for bit (so NaNs of one pattern are equal, +0 and -0 are not).
template <class T>
testing::AssertionResult bit_equal(std::span<const T> got, std::span<const T> want,
                                   const std::string& what) {
  if (got.size() != want.size())
    return testing::AssertionFailure()
           << what << ": " << got.size() << " elements, expected " << want.size();
  for (size_t i = 0; i < want.size(); ++i)
    if (std::memcmp(&got[i], &want[i], sizeof(T)) != 0) {
      std::ostringstream text;
      text.precision(9);
      text << what << ": differs at index " << i << ": " << got[i] << " and " << want[i];
      return testing::AssertionFailure() << text.str();
    }
  return testing::AssertionSuccess();
}

}  // namespace rwkv::test
