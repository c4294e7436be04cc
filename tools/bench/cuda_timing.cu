#include "tools/bench/cuda_timing.h"

#include <algorithm>
#include <vector>

#include "kernels/core/bf16.h"
#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/gemm.h"
#include "kernels/core/half.h"
#include "kernels/core/memory.h"
#include "kernels/core/rng.h"

namespace rwkv::bench {
namespace {

cudaStream_t stream_of(Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream());
}

__global__ void delay_kernel(uint64_t nanoseconds) {
  uint64_t begin, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - begin < nanoseconds);
}

constexpr int kRateRepeats = 10;

}  // namespace

EventTimer::EventTimer() {
  cudaEvent_t start = nullptr, stop = nullptr;
  RWKV_CUDA(cudaEventCreate(&start));
  start_ = start;
  const cudaError_t second = cudaEventCreate(&stop);
  if (second != cudaSuccess) cudaEventDestroy(start);
  RWKV_CUDA(second);
  stop_ = stop;
}

EventTimer::~EventTimer() {
  cudaEventDestroy(static_cast<cudaEvent_t>(start_));
  cudaEventDestroy(static_cast<cudaEvent_t>(stop_));
}

void EventTimer::start(Context& ctx) {
  RWKV_CUDA(cudaEventRecord(static_cast<cudaEvent_t>(start_), stream_of(ctx)));
}

void EventTimer::stop(Context& ctx) {
  RWKV_CUDA(cudaEventRecord(static_cast<cudaEvent_t>(stop_), stream_of(ctx)));
}

double EventTimer::seconds() {
  RWKV_CUDA(cudaEventSynchronize(static_cast<cudaEvent_t>(stop_)));
  float ms = 0;
  RWKV_CUDA(
      cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(start_), static_cast<cudaEvent_t>(stop_)));
  return 1e-3 * static_cast<double>(ms);
}

void cuda_delay(Context& ctx, double seconds) {
  delay_kernel<<<1, 1, 0, stream_of(ctx)>>>(static_cast<uint64_t>(1e9 * seconds));
  RWKV_LAUNCHED("delay", stream_of(ctx));
}

Timing cuda_time(Context& ctx, int repeats, const std::function<void()>& work, int warmup,
                 double delay_s, const std::function<void()>& before) {
  for (int i = 0; i < warmup; ++i) {
    if (before) before();
    work();
  }
  EventTimer timer;
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    if (before) before();
    cuda_delay(ctx, delay_s);
    timer.start(ctx);
    work();
    timer.stop(ctx);
    seconds.push_back(timer.seconds());
  }
  return summarize(std::move(seconds));
}

void cuda_fill_repeated(Context& ctx, const TensorView& view, const TensorView& host) {
  RWKV_ASSERT(view.spec.dtype == host.spec.dtype && host.numel() >= 1, to_string(view.spec),
              " filled from ", to_string(host.spec));
  auto* const data = static_cast<std::byte*>(view.data);
  const DType type = view.spec.dtype;
  int64_t done = std::min(view.numel(), host.numel());
  const TensorSpec first({done}, type);
  copy(ctx, TensorView(data, first, Device::kCuda), TensorView(host.data, first));
  while (done < view.numel()) {  // what is there, once more
    const int64_t more = std::min(done, view.numel() - done);
    const TensorSpec piece({more}, type);
    copy(ctx,
         TensorView(data + static_cast<size_t>(done) * dtype_bytes(type), piece, Device::kCuda),
         TensorView(data, piece, Device::kCuda));
    done += more;
  }
  ctx.synchronize("fill");
}

void cuda_fill_normal(Context& ctx, const TensorView& view, double mean, double deviation,
                      uint64_t seed) {
  const DType type = view.spec.dtype;
  RWKV_CHECK(type == DType::kF32 || type == DType::kBF16 || type == DType::kF16, DTypeError,
             "random numbers on the GPU: found ", to_string(view.spec),
             ", expected f32, bf16 or f16");
  const Rng rng(seed, hash_name("benchmark operand"));
  const auto n = static_cast<size_t>(std::min<int64_t>(view.numel(), int64_t{1} << 20));
  const auto draw = [&](size_t i) { return static_cast<float>(mean + deviation * rng.normal(i)); };
  const TensorSpec spec({static_cast<int64_t>(n)}, view.spec.dtype);
  if (view.spec.dtype == DType::kF32) {
    std::vector<float> host(n);
    for (size_t i = 0; i < n; ++i) host[i] = draw(i);
    cuda_fill_repeated(ctx, view, TensorView(host.data(), spec));
  } else if (type == DType::kF16) {
    std::vector<F16> host(n);
    for (size_t i = 0; i < n; ++i) host[i] = to_half(draw(i));
    cuda_fill_repeated(ctx, view, TensorView(host.data(), spec));
  } else {
    std::vector<BF16> host(n);
    for (size_t i = 0; i < n; ++i) host[i] = to_bf16(draw(i));
    cuda_fill_repeated(ctx, view, TensorView(host.data(), spec));
  }
}

double cuda_copy_bandwidth(Context& ctx, int64_t bytes) {
  const TensorSpec spec({bytes / 2}, DType::kBF16);
  Arena arena(Device::kCuda, 2 * align_up(spec.bytes()), "copy bandwidth");
  const TensorView from = arena.take(spec, "from"), to = arena.take(spec, "to");
  cuda_fill_normal(ctx, from, 0, 1, 1);
  const Timing t = cuda_time(ctx, kRateRepeats, [&] { copy(ctx, to, from); });
  return 2 * static_cast<double>(spec.bytes()) / t.median;
}

double cuda_gemm_flops(Context& ctx, DType dtype, int64_t m, int64_t n, int64_t k) {
  const TensorSpec a_spec({m, k}, dtype), b_spec({n, k}, dtype), c_spec({m, n}, dtype);
  Arena arena(Device::kCuda,
              align_up(a_spec.bytes()) + align_up(b_spec.bytes()) + align_up(c_spec.bytes()),
              "product rate");
  const TensorView a = arena.take(a_spec, "a"), b = arena.take(b_spec, "b"),
                   c = arena.take(c_spec, "c");
  cuda_fill_normal(ctx, a, 0, 1, 1);
  cuda_fill_normal(ctx, b, 0, 1, 2);
  const GemmCall call{.m = m,
                      .n = n,
                      .k = k,
                      .a = a.data,
                      .b = b.data,
                      .c = c.data,
                      .lda = k,
                      .ldb = k,
                      .ldc = n,
                      .trans_b = true,
                      .dtype = dtype,
                      .out_dtype = dtype};
  measure_gemm_algorithms(ctx, true);
  gemm(ctx, call);
  measure_gemm_algorithms(ctx, false);
  const Timing t = cuda_time(ctx, kRateRepeats, [&] { gemm(ctx, call); });
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) / t.median;
}

}  // namespace rwkv::bench
