#include "trainer/value_pattern.h"

#include <algorithm>
#include <vector>

#include "kernels/core/bf16.h"
#include "kernels/core/error.h"
#include "kernels/core/memory.h"

namespace rwkv {

ValuePattern::ValuePattern(Context& ctx, std::span<const float> values)
    : ctx_(ctx),
      count_(static_cast<int64_t>(values.size())),
      floats_(ctx.device(), values.size_bytes(), "values of a benchmark"),
      halves_(ctx.device(), values.size() * sizeof(BF16), "values of a benchmark, rounded") {
  RWKV_ASSERT(!values.empty(), "nothing to fill memory with");
  std::vector<BF16> rounded;
  for (const float x : values) rounded.push_back(to_bf16(x));
  const TensorSpec spec({count_}), half({count_}, DType::kBF16);
  copy(ctx, floats_.at(0, spec), TensorView(const_cast<float*>(values.data()), spec));
  copy(ctx, halves_.at(0, half), TensorView(rounded.data(), half));
  ctx.synchronize("values of a benchmark");
}

void ValuePattern::fill(void* to, int64_t first, int64_t elements, DType type) const {
  RWKV_ASSERT(type == DType::kF32 || type == DType::kBF16, dtype_name(type));
  const Arena& from = type == DType::kF32 ? floats_ : halves_;
  const size_t bytes = dtype_bytes(type);
  for (int64_t done = 0; done < elements;) {
    const int64_t at = (first + done) % count_, n = std::min(count_ - at, elements - done);
    const TensorSpec spec({n}, type);
    copy(ctx_,
         TensorView(static_cast<std::byte*>(to) + static_cast<size_t>(done) * bytes, spec,
                    ctx_.device()),
         from.at(static_cast<size_t>(at) * bytes, spec));
    done += n;
  }
}

}  // namespace rwkv
