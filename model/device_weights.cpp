#include "model/device_weights.h"

#include "kernels/core/bf16.h"
#include "kernels/core/memory.h"
#include "kernels/core/packed_rows.h"
#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

constexpr int64_t kElementsPerTask = 1 << 18;

}  // namespace

DeviceWeights::DeviceWeights(Context& ctx, std::span<const GraphParam> wanted) {
  size_t bytes = 0;
  for (const GraphParam& p : wanted) bytes += align_up(p.spec.bytes());
  arena_ = Arena(ctx.device(), bytes, "weights");
  for (const GraphParam& p : wanted) views_.push_back(arena_.take(p.spec, p.name));
}

void DeviceWeights::upload(Context& ctx, const ParamStore& values) {
  RWKV_ASSERT(values.views().size() == views_.size(), values.views().size(), " parameters");
  std::vector<BF16> rounded;
  for (size_t i = 0; i < views_.size(); ++i) {
    const TensorView from = values.views()[i], to = views_[i];
    if (to.spec.dtype == DType::kF32) {
      copy(ctx, to, from);
      continue;
    }
    const float* x = from.f32();
    if (to.spec.dtype == DType::kI8) {
      RWKV_ASSERT(ctx.device() == Device::kCpu, "int8 weights are for the CPU");
      const int64_t cols = packed_columns(to.spec);
      parallel_for(to.rows(), 64, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          pack_row(x + r * cols, cols, to.as<int8_t>() + r * to.last());
      });
      continue;
    }
    rounded.resize(static_cast<size_t>(from.numel()));
    parallel_for(from.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) rounded[static_cast<size_t>(e)] = to_bf16(x[e]);
    });
    copy(ctx, to, TensorView(rounded.data(), to.spec));
    ctx.synchronize("upload of a matrix");  // `rounded` is used again
  }
  ctx.synchronize("upload of the weights");
}

}  // namespace rwkv
