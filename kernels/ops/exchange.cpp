#include "kernels/ops/exchange.h"

#include <cmath>
#include <limits>

#include "kernels/core/error.h"
#include "kernels/cuda/exchange.h"

namespace rwkv {

void combine_records(Context& ctx, const RankRecord* records, size_t ranks, RankOutcome* outcome) {
  RWKV_CHECK(ctx.device() == Device::kCuda, DeviceError, "combining ranks: found a ",
             device_name(ctx.device()), " context, expected cuda");
  cuda::combine_records(ctx.stream(), records, ranks, outcome);
}

RankOutcome combine_records(const RankRecord* records, size_t ranks) {
  RankOutcome out;
  double squares = 0;
  for (size_t r = 0; r < ranks; ++r) {
    squares += records[r].squares;
    out.loss_sum += records[r].loss_sum;
    out.stops += records[r].stop;
  }
  out.norm =
      std::isfinite(out.loss_sum) ? std::sqrt(squares) : std::numeric_limits<double>::quiet_NaN();
  return out;
}

void narrow_to_bf16(Stream stream, const float* from, BF16* to, int64_t n) {
  cuda::narrow_to_bf16(stream, from, to, n);
}

void sum_parts(Stream stream, DType type, const void* from, int ranks, int64_t n, void* to) {
  cuda::sum_parts(stream, type, from, ranks, n, to);
}

void widen_to_f32(Stream stream, const BF16* from, float* to, int64_t n) {
  cuda::widen_to_f32(stream, from, to, n);
}

}  // namespace rwkv
