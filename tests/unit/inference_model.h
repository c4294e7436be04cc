#pragma once
// Small models for the tests of inference/.

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "kernels/core/rng.h"
#include "model/params.h"
#include "model/rwkv.h"

namespace rwkv::test {

struct TestModel {
  std::unique_ptr<Model> model;
  std::unique_ptr<ParamStore> weights;

  std::span<float> tensor(const std::string& name) const {
    const TensorView v = (*weights)[model->params().find(name).value()];
    return {v.f32(), static_cast<size_t>(v.numel())};
  }
};

inline TestModel make_test_model(int64_t layers, int64_t width, int64_t vocab, int64_t head_size,
                                 const std::string& architecture = "rwkv7") {
  ModelConfig c;
  c.architecture = architecture;
  c.n_layer = layers;
  c.n_embd = width;
  c.vocab_size = vocab;
  c.head_size = head_size;
  TestModel m{make_model(c), nullptr};
  m.weights = std::make_unique<ParamStore>(Device::kCpu, m.model->params(), "weights");
  m.model->init_params(*m.weights, {});
  return m;
}

/// Every tensor away from its initial value: fresh models ignore their blocks (output matrices are
/// zero), and gates and decays hardly depend on the input.
inline TestModel random_model(uint64_t seed, int64_t layers = 3, int64_t width = 128,
                              int64_t vocab = 300, int64_t head_size = 64,
                              const std::string& architecture = "rwkv7") {
  TestModel m = make_test_model(layers, width, vocab, head_size, architecture);
  for (size_t i = 0; i < m.model->params().size(); ++i) {
    const ParamSpec& p = m.model->params().specs()[i];
    Rng rng(seed, hash_name(p.name));
    const double scale = p.name == "emb.weight" ? 1.0
                         : p.spec.rank == 2 ? 0.7 / std::sqrt(static_cast<double>(p.spec.last()))
                                            : 0.1;
    for (float& x : m.tensor(p.name)) x += static_cast<float>(scale * rng.normal(rng.next_u64()));
  }
  return m;
}

inline TestModel random_rwkv4(uint64_t seed, int64_t layers = 3, int64_t width = 128,
                              int64_t vocab = 300) {
  return random_model(seed, layers, width, vocab, 0, "rwkv4");
}

/// A model that always continues token t with next(t): blocks add nothing (their initial value),
/// every token has a random direction, which is its row of the head and, up to scale, the
/// embedding of the tokens that it follows.
template <class Next>
TestModel bigram_model(const Next& next, int64_t vocab = 257) {
  constexpr int64_t kWidth = 256;
  TestModel m = make_test_model(2, kWidth, vocab, 64);
  const std::span<float> emb = m.tensor("emb.weight"), head = m.tensor("head.weight");
  const Rng rng(7, hash_name("bigram"));
  for (size_t i = 0; i < head.size(); ++i) head[i] = static_cast<float>(0.1 * rng.normal(i));
  for (int64_t t = 0; t < vocab; ++t)
    std::copy_n(head.begin() + next(static_cast<int32_t>(t)) * kWidth, kWidth,
                emb.begin() + t * kWidth);
  return m;
}

/// Letters in order, "z" then a line feed; digits in order, "9" then the end of the document;
/// a line feed, and everything else, is followed by "a".
inline int32_t alphabet(int32_t token) {
  const int c = token - 1;
  if (c >= 'a' && c < 'z') return token + 1;
  if (c == 'z') return '\n' + 1;
  if (c >= '0' && c < '9') return token + 1;
  if (c == '9') return kEndOfDocument;
  return 'a' + 1;
}

inline std::vector<int32_t> random_ids(uint64_t seed, int64_t n, int64_t vocab) {
  const Rng rng(seed, hash_name("ids"));
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(vocab)));
  return ids;
}

}  // namespace rwkv::test
