// Stands in for cuda_timing.cu in builds without CUDA.
#include "kernels/core/error.h"
#include "tools/bench/cuda_timing.h"

namespace rwkv::bench {
namespace {

[[noreturn]] void absent() {
  throw DeviceError(
      "timing on a GPU: this build has CPU kernels only; use --device cpu, or build with a CUDA "
      "toolkit (nvcc on the PATH)");
}

}  // namespace

EventTimer::EventTimer() {
  absent();
}
EventTimer::~EventTimer() = default;
void EventTimer::start(Context&) {
  absent();
}
void EventTimer::stop(Context&) {
  absent();
}
double EventTimer::seconds() {
  absent();
}
void cuda_delay(Context&, double) {
  absent();
}
Timing cuda_time(Context&, int, const std::function<void()>&, int, double,
                 const std::function<void()>&) {
  absent();
}
void cuda_fill_normal(Context&, const TensorView&, double, double, uint64_t) {
  absent();
}
void cuda_fill_repeated(Context&, const TensorView&, const TensorView&) {
  absent();
}
double cuda_copy_bandwidth(Context&, int64_t) {
  absent();
}
double cuda_gemm_flops(Context&, DType, int64_t, int64_t, int64_t) {
  absent();
}

}  // namespace rwkv::bench
