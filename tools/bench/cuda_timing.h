#pragma once
/// Timing on the GPU, and the rates that benchmarks compare with. Everything here throws
/// DeviceError in a build without CUDA (cuda_timing_absent.cpp).

#include <cstdint>
#include <functional>

#include "kernels/core/context.h"
#include "tools/bench/report.h"

namespace rwkv::bench {

/// Seconds between two points of a context's stream, as the GPU counts them. Not copyable.
class EventTimer {
 public:
  EventTimer();
  ~EventTimer();
  EventTimer(const EventTimer&) = delete;
  EventTimer& operator=(const EventTimer&) = delete;

  void start(Context& ctx);  ///< queued
  void stop(Context& ctx);   ///< queued
  /// Waits until the GPU has passed the stop.
  double seconds();

 private:
  void* start_ = nullptr;
  void* stop_ = nullptr;
};

/// Queues a kernel that does nothing for `seconds`: what the host queues meanwhile then runs
/// without gaps, so that a measurement does not contain the host's launches.
void cuda_delay(Context& ctx, double seconds);

/// `work` queues something on ctx; it is timed with events, `repeats` times after `warmup` untimed
/// runs, each behind a delay of `delay_s`. Back to back: caches are not flushed. `before` is queued
/// ahead of every run, untimed.
Timing cuda_time(Context& ctx, int repeats, const std::function<void()>& work, int warmup = 3,
                 double delay_s = 100e-6, const std::function<void()>& before = {});

/// Fills device memory of type f32, bf16 or f16 with N(mean, deviation): up to 2^20 draws of
/// Philox, repeated.
void cuda_fill_normal(Context& ctx, const TensorView& view, double mean, double deviation,
                      uint64_t seed);
/// Copies `host` to the beginning of `view` and repeats it until the view is full. Types must
/// agree, and the host view must not be longer.
void cuda_fill_repeated(Context& ctx, const TensorView& view, const TensorView& host);

/// Bytes per second, read plus written, of a copy of `bytes` within the device's memory (median).
double cuda_copy_bandwidth(Context& ctx, int64_t bytes = int64_t{2} << 30);

/// Flop per second of C (m, n) = A (m, k) B^T with B (n, k), all of type `dtype`, random operands,
/// through rwkv::gemm with the fastest algorithm that it finds (median). The usual ceiling: bf16,
/// 8192 x 8192 x 8192.
double cuda_gemm_flops(Context& ctx, DType dtype, int64_t m, int64_t n, int64_t k);

}  // namespace rwkv::bench
