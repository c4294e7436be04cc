#include "kernels/cpu/eigen_reference.h"

#include <algorithm>
#include <vector>

#include "kernels/core/trace.h"

// Everywhere else Eigen is compiled without its threading. Two differently compiled copies of one
// template must not meet in a program, so this copy lives in a namespace of another name.
#undef EIGEN_DONT_PARALLELIZE
#define Eigen EigenWithThreads
#include <Eigen/Core>

namespace rwkv::cpu {

double eigen_gemm_gflops(int64_t n, int threads, int repeats) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::setNbThreads(threads);
  const Matrix a = Matrix::Random(n, n), b = Matrix::Random(n, n);
  Matrix c = Matrix::Zero(n, n);
  c.noalias() = a * b;
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const double start = now_seconds();
    c.noalias() = a * b;
    seconds.push_back(now_seconds() - start);
  }
  std::ranges::nth_element(seconds, seconds.begin() + repeats / 2);
  const auto flops = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  return flops / seconds[static_cast<size_t>(repeats) / 2] * 1e-9;
}

}  // namespace rwkv::cpu
