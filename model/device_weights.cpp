#include "model/device_weights.h"

#include "kernels/core/bf16.h"
#include "kernels/core/memory.h"
#include "kernels/core/packed_rows.h"
#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

constexpr int64_t kElementsPerTask = 1 << 18;

/// A matrix, transposed into `memory`.
TensorView transpose(const TensorView& m, std::vector<float>& memory) {
  const int64_t rows = m.dim(0), cols = m.dim(1);
  memory.resize(static_cast<size_t>(m.numel()));
  parallel_for(cols, 16, [&](int64_t begin, int64_t end) {  // 16: a cache line of each row
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = begin; c < end; ++c)
        memory[static_cast<size_t>(c * rows + r)] = m.f32()[r * cols + c];
  });
  return TensorView(memory.data(), {cols, rows});
}

}  // namespace

DeviceWeights::DeviceWeights(Context& ctx, std::span<const GraphParam> wanted,
                             const ParamStore* lender) {
  const auto borrowed = [&](size_t i) {
    return lender != nullptr && ctx.device() == Device::kCpu && !wanted[i].transposed &&
           lender->views()[i].spec == wanted[i].spec;
  };
  size_t bytes = 0;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (!borrowed(i)) bytes += align_up(wanted[i].spec.bytes());
  arena_ = Arena(ctx.device(), bytes, "weights");
  for (size_t i = 0; i < wanted.size(); ++i) {
    const GraphParam& p = wanted[i];
    views_.push_back(borrowed(i) ? lender->views()[i] : arena_.take(p.spec, p.name));
    transposed_.push_back(p.transposed);
  }
}

void DeviceWeights::upload(Context& ctx, const ParamStore& values) {
  RWKV_ASSERT(values.views().size() == views_.size(), values.views().size(), " parameters");
  std::vector<float> turned;
  std::vector<BF16> rounded;
  for (size_t i = 0; i < views_.size(); ++i) {
    TensorView from = values.views()[i];
    const TensorView to = views_[i];
    if (from.data == to.data) continue;
    if (transposed_[i]) from = transpose(from, turned);
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
