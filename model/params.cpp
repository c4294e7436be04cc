#include "model/params.h"

#include <cstring>
#include <utility>

#include "kernels/core/packed_rows.h"

namespace rwkv {
namespace {
constexpr int64_t kAlignElements = static_cast<int64_t>(kArenaAlignment / sizeof(float));
}

ParamId ParamRegistry::add(ParamSpec spec) {
  RWKV_ASSERT(!find(spec.name), "parameter ", spec.name, " added twice");
  const auto id = static_cast<ParamId>(specs_.size());
  const int64_t padded = (spec.spec.numel() + kAlignElements - 1) / kAlignElements * kAlignElements;
  if (buckets_.empty() || buckets_.back().name != spec.bucket) {
    for (const Bucket& b : buckets_) RWKV_ASSERT(b.name != spec.bucket, "bucket ", spec.bucket);
    buckets_.push_back({spec.bucket, id, id, flat_elements_, 0});
  }
  buckets_.back().end = id + 1;
  buckets_.back().elements += padded;
  offsets_.push_back(flat_elements_);
  flat_elements_ += padded;
  graph_params_.push_back({spec.name, spec.spec});
  bf16_graph_params_.push_back(graph_params_.back());
  if (spec.matrix) bf16_graph_params_.back().spec.dtype = DType::kBF16;
  const auto add_packed = [&](std::vector<GraphParam>& list, DType type) {
    GraphParam& p = list.emplace_back(graph_params_.back());
    if (!spec.matrix || spec.bucket == "emb") return;
    p.transposed = spec.sparse_input;
    if (p.transposed) std::swap(p.spec.dim[0], p.spec.dim[1]);
    p.spec = packed_spec(p.spec, type);
  };
  add_packed(f32_packed_, DType::kF32);
  add_packed(bf16_packed_, DType::kBF16);
  add_packed(i8_packed_, DType::kI8);
  specs_.push_back(std::move(spec));
  return id;
}

std::optional<ParamId> ParamRegistry::find(std::string_view name) const {
  for (size_t i = 0; i < specs_.size(); ++i)
    if (specs_[i].name == name) return static_cast<ParamId>(i);
  return std::nullopt;
}

int64_t ParamRegistry::numel() const {
  int64_t sum = 0;
  for (const ParamSpec& s : specs_) sum += s.spec.numel();
  return sum;
}

ParamStore::ParamStore(Device device, const ParamRegistry& registry, std::string purpose)
    : arena_(device, static_cast<size_t>(registry.flat_elements()) * sizeof(float),
             std::move(purpose)),
      elements_(registry.flat_elements()) {
  for (const ParamSpec& s : registry.specs()) views_.push_back(arena_.take(s.spec, s.name));
}

std::span<float> ParamStore::flat() const {
  return {reinterpret_cast<float*>(arena_.data()), static_cast<size_t>(elements_)};
}

void ParamStore::zero() {
  std::memset(arena_.data(), 0, flat().size_bytes());
}

}  // namespace rwkv
