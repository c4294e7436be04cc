#include "model/public_sizes.h"

#include <algorithm>
#include <array>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

struct Size {
  int64_t layers, width, w, a, v, g;
};
constexpr std::array<std::string_view, 6> kNames = {"0.1B", "0.4B", "1.5B",
                                                    "2.9B", "7.2B", "13.3B"};
constexpr std::array<Size, 6> kSizes = {{{12, 768, 64, 64, 32, 128},
                                         {24, 1024, 64, 64, 32, 128},
                                         {24, 2048, 96, 96, 64, 256},
                                         {32, 2560, 96, 96, 64, 320},
                                         {32, 4096, 128, 128, 96, 480},
                                         {61, 4096, 192, 192, 128, 384}}};

}  // namespace

std::span<const std::string_view> public_model_sizes() {
  return kNames;
}

ModelConfig public_model_config(std::string_view size) {
  const auto at = std::ranges::find(kNames, size);
  RWKV_CHECK(at != kNames.end(), ConfigError, "a model of size '", size,
             "': expected 0.1B, 0.4B, 1.5B, 2.9B, 7.2B or 13.3B");
  const Size& s = kSizes[static_cast<size_t>(at - kNames.begin())];
  ModelConfig c;
  c.vocab_size = 65536;
  c.head_size = 64;
  c.n_layer = s.layers;
  c.n_embd = s.width;
  c.rank_w = s.w;
  c.rank_a = s.a;
  c.rank_v = s.v;
  c.rank_g = s.g;
  c.finish();
  return c;
}

}  // namespace rwkv
