#pragma once
// Models for the tests of decoding and prefill, larger than those of inference_model.h.

#include <cmath>

#include "kernels/core/parallel.h"
#include "tests/unit/inference_model.h"

namespace rwkv::test {

/// A model away from its initial values whose logits have a deviation of about one. Drawn in
/// parallel: init_params would take long for this many.
inline TestModel quick_model(int64_t layers, int64_t width, int64_t vocab, uint64_t seed) {
  ModelConfig c;
  c.n_layer = layers;
  c.n_embd = width;
  c.vocab_size = vocab;
  c.head_size = 64;
  TestModel m{make_model(c), nullptr};
  m.weights = std::make_unique<ParamStore>(Device::kCpu, m.model->params(), "weights");
  for (const ParamSpec& p : m.model->params().specs()) {
    const std::span<float> to = m.tensor(p.name);
    const Rng rng(seed, hash_name(p.name));
    const bool matrix = p.spec.rank == 2 && !p.name.ends_with("r_k");
    const bool down = p.name.ends_with("1") && matrix;  // (width, rank)
    const auto fan_in = static_cast<double>(down                              ? p.spec[0]
                                            : p.name.ends_with("2") && matrix ? p.spec[0]
                                                                              : p.spec.last());
    const double scale = p.name == "emb.weight"    ? 1.0
                         : p.name == "head.weight" ? 1.0 / std::sqrt(fan_in)
                         : matrix                  ? 0.7 / std::sqrt(fan_in)
                                                   : 0.2;
    const bool norm = p.name.ends_with("weight") && !matrix;
    const double mean = norm || p.name.ends_with("k_a")           ? 1.0
                        : p.name.find(".x_") != std::string::npos ? 0.5
                        : p.name.ends_with("k_k")                 ? 0.7
                        : p.name.ends_with("w0")                  ? -1.0
                                                                  : 0.0;
    parallel_for(static_cast<int64_t>(to.size()), 1 << 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        to[static_cast<size_t>(i)] =
            static_cast<float>(mean + scale * rng.normal(static_cast<uint64_t>(i)));
    });
  }
  return m;
}

}  // namespace rwkv::test
