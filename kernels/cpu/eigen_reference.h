#pragma once
/// Eigen's own matrix product as a yardstick for ours.

#include <cstdint>

namespace rwkv::cpu {

/// GFLOP/s of C (n, n) = A B in f32 with Eigen's own threading: the median of `repeats` runs after
/// one to warm up. Uses `threads` threads for the measurement.
double eigen_gemm_gflops(int64_t n, int threads, int repeats);

}  // namespace rwkv::cpu
