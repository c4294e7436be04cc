#pragma once
/// The parameters of a model: names, shapes, training groups, and the flat memory they live in.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "model/graph/graph.h"

namespace rwkv {

/// Name (that of the public checkpoints), shape and training group of one tensor.
struct ParamSpec {
  std::string name;
  TensorSpec spec;
  float lr_scale = 1;         ///< multiplies the learning rate (2 for att.w0)
  bool weight_decay = false;  ///< group "dec" of spec rwkv7 1.3
  bool matrix = false;        ///< kernels read it in the type of the activations, not as f32
  bool sparse_input = false;  ///< a matrix (out, in) whose inputs are often zero
  std::string bucket;         ///< "emb", "blocks.0", ..., "head": the unit of gradient exchange
};

/// A run of parameters that lie next to each other in memory.
struct Bucket {
  std::string name;
  ParamId begin, end;        ///< parameters [begin, end)
  int64_t offset, elements;  ///< in the flat buffer, padded to kArenaAlignment bytes per tensor
};

class ParamRegistry {
 public:
  /// Parameters of one bucket must be added one after the other. Throws InternalError on a
  /// duplicate name.
  ParamId add(ParamSpec spec);

  std::span<const ParamSpec> specs() const { return specs_; }
  const ParamSpec& operator[](ParamId id) const { return specs_[static_cast<size_t>(id)]; }
  size_t size() const { return specs_.size(); }
  std::optional<ParamId> find(std::string_view name) const;
  /// What Graph wants; lives as long as the registry and moves with it only before first use.
  std::span<const GraphParam> graph_params() const { return graph_params_; }
  /// The same for graphs whose activations are `activations`: matrices have that type.
  std::span<const GraphParam> graph_params(DType activations) const {
    return activations == DType::kBF16 ? bf16_graph_params_ : graph_params_;
  }
  /// The same for inference in f32 on the CPU. Matrices that are multiplied by are packed:
  /// `weights` is f32, bf16 or i8 (kernels/core/packed_rows.h); those with sparse inputs are
  /// transposed. The embedding stays as it is.
  std::span<const GraphParam> packed_graph_params(DType weights) const {
    return weights == DType::kI8     ? i8_packed_
           : weights == DType::kBF16 ? bf16_packed_
                                     : f32_packed_;
  }
  std::span<const Bucket> buckets() const { return buckets_; }
  int64_t flat_elements() const { return flat_elements_; }  ///< padding included
  int64_t offset(ParamId id) const { return offsets_[static_cast<size_t>(id)]; }
  int64_t numel() const;  ///< padding not included

 private:
  std::vector<ParamSpec> specs_;
  std::vector<GraphParam> graph_params_, bf16_graph_params_;
  std::vector<GraphParam> f32_packed_, bf16_packed_, i8_packed_;
  std::vector<Bucket> buckets_;
  std::vector<int64_t> offsets_;
  int64_t flat_elements_ = 0;
};

/// One f32 copy of all parameters (values, gradients or a moment) in one flat buffer, zero at
/// first. Padding between tensors stays zero, so that norms may run over the whole buffer.
class ParamStore {
 public:
  ParamStore() = default;
  ParamStore(Device device, const ParamRegistry& registry, std::string purpose);

  TensorView operator[](ParamId id) const { return views_[static_cast<size_t>(id)]; }
  std::span<const TensorView> views() const { return views_; }
  std::span<float> flat() const;
  void zero();

 private:
  Arena arena_;
  std::vector<TensorView> views_;
  int64_t elements_ = 0;
};

}  // namespace rwkv
