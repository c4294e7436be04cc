#include "tools/bench/model_sizes.h"

#include "kernels/core/error.h"

namespace rwkv::bench {

ModelConfig public_model(const std::string& size) {
  ModelConfig c;
  c.vocab_size = 65536;
  c.head_size = 64;
  const auto set = [&](int64_t layers, int64_t width, int64_t w, int64_t a, int64_t v, int64_t g) {
    c.n_layer = layers;
    c.n_embd = width;
    c.rank_w = w;
    c.rank_a = a;
    c.rank_v = v;
    c.rank_g = g;
  };
  if (size == "0.1B")
    set(12, 768, 64, 64, 32, 128);
  else if (size == "1.5B")
    set(24, 2048, 96, 96, 64, 256);
  else if (size == "2.9B")
    set(32, 2560, 96, 96, 64, 320);
  else if (size == "7.2B")
    set(32, 4096, 128, 128, 96, 480);
  else
    throw ConfigError(str("model size: found '", size, "', expected 0.1B, 1.5B, 2.9B or 7.2B"));
  c.finish();
  return c;
}

DType decode_dtype(const std::string& flag, const std::string& name) {
  for (const DType t : {DType::kF16, DType::kBF16, DType::kF32})
    if (dtype_name(t) == name) return t;
  throw ConfigError(str("--", flag, ": found '", name, "', expected f16, bf16 or f32"));
}

}  // namespace rwkv::bench
