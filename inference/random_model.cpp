#include "inference/random_model.h"

#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"

namespace rwkv {
namespace {

/// Numbers that are drawn; tensors repeat them from places of their own. Prime, so that rows
/// differ.
constexpr size_t kDraws = 1000003;
constexpr int64_t kGrain = 1 << 20;

}  // namespace

LoadedModel random_model(const ModelConfig& config, uint64_t seed) {
  LoadedModel m;
  m.path = "random weights";
  m.model = make_model(config);
  const ParamRegistry& params = m.model->params();
  m.weights = std::make_unique<ParamStore>(Device::kCpu, params, "weights");
  const Rng rng(seed, hash_name("random model"));
  std::vector<float> drawn(kDraws);
  for (size_t i = 0; i < kDraws; ++i) drawn[i] = static_cast<float>(rng.normal(i));
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& p = params.specs()[i];
    const TensorView view = (*m.weights)[static_cast<ParamId>(i)];
    // Embeddings of deviation 1; matrices keep the size of what they multiply, or a little less;
    // vectors are around 0, weights of norms around 1.
    const double wide = p.spec.rank == 2 ? std::sqrt(static_cast<double>(p.spec.last())) : 3;
    const auto scale = static_cast<float>(p.name == "emb.weight" ? 1.0 : 0.7 / wide);
    const bool norm = p.name.find("ln") != std::string::npos && p.name.ends_with(".weight");
    const float middle = norm && p.spec.rank == 1 ? 1.0F : 0.0F;
    const uint64_t from = Rng(seed, hash_name(p.name)).below(0, kDraws);
    parallel_for(view.numel(), kGrain, [&](int64_t begin, int64_t end) {
      size_t at = (from + static_cast<size_t>(begin)) % kDraws;
      for (float& x : std::span(view.f32() + begin, view.f32() + end)) {
        x = middle + scale * drawn[at];
        at = at + 1 < kDraws ? at + 1 : 0;
      }
    });
  }
  return m;
}

}  // namespace rwkv
