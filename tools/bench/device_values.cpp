#include "tools/bench/device_values.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/core/bf16.h"
#include "kernels/core/memory.h"
#include "tools/bench/cuda_timing.h"

namespace rwkv::bench {

void fill_values(Context& ctx, const TensorView& view, const std::vector<float>& values) {
  RWKV_ASSERT(!values.empty(), "nothing to fill a tensor with");
  // No more than fits: the values may be those of a larger tensor.
  const auto n = std::min(static_cast<int64_t>(values.size()), view.numel());
  const TensorSpec spec({n}, view.spec.dtype);
  std::vector<BF16> half;
  if (view.spec.dtype == DType::kBF16)
    for (int64_t i = 0; i < n; ++i) half.push_back(to_bf16(values[static_cast<size_t>(i)]));
  const void* from = half.empty() ? static_cast<const void*>(values.data()) : half.data();
  if (ctx.device() == Device::kCuda) {
    cuda_fill_repeated(ctx, view, TensorView(const_cast<void*>(from), spec));
    return;
  }
  RWKV_ASSERT(view.spec.dtype == DType::kF32, "the CPU has f32 only");
  for (int64_t i = 0; i < view.numel(); ++i) view.f32()[i] = values[static_cast<size_t>(i % n)];
}

std::vector<double> read_values(Context& ctx, const TensorView& whole, int64_t most) {
  const int64_t n = std::min(whole.numel(), most);
  const TensorView view(static_cast<std::byte*>(whole.data) +
                            static_cast<size_t>(whole.numel() - n) * dtype_bytes(whole.spec.dtype),
                        TensorSpec({n}, whole.spec.dtype), whole.device);
  std::vector<double> result(static_cast<size_t>(n));
  if (view.spec.dtype == DType::kBF16) {
    std::vector<BF16> host(result.size());
    copy(ctx, TensorView(host.data(), view.spec), view);
    for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<double>(to_float(host[i]));
  } else {
    std::vector<float> host(result.size());
    copy(ctx, TensorView(host.data(), view.spec), view);
    result.assign(host.begin(), host.end());
  }
  return result;
}

double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  RWKV_ASSERT(got.size() == want.size(), got.size(), " values for ", want.size());
  double diff = 0, norm = 1e-300;
  for (size_t i = 0; i < want.size(); ++i) {
    diff += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(diff / norm);
}

void raise_error(double& worst, double error) {
  if (!(error <= worst)) worst = error;
}

}  // namespace rwkv::bench
