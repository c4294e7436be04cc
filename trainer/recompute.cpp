#include "trainer/recompute.h"

#include "trainer/memory.h"

namespace rwkv {

int64_t fewest_recomputed_blocks(const ModelConfig& config, TrainStepOptions options,
                                 size_t limit) {
  if (limit == 0) return 0;
  if (options.device == Device::kCuda) limit -= std::min(limit, kSpareDeviceBytes);
  const auto fits = [&](int64_t blocks) {
    options.grad_checkpointing = blocks > 0 ? GradCheckpointing::kBlock : GradCheckpointing::kNone;
    options.recompute_blocks = blocks;
    return total_bytes(TrainStep(config, options).memory()) <= limit;
  };
  if (fits(0)) return 0;
  if (!fits(config.n_layer)) return -1;
  int64_t too_few = 0, enough = config.n_layer;
  while (enough - too_few > 1) {
    const int64_t middle = too_few + (enough - too_few) / 2;
    (fits(middle) ? enough : too_few) = middle;
  }
  return enough;
}

}  // namespace rwkv
