#pragma once
/// The weights of an RWKV-7 model in the order of kernels/decode/layout.h.

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "kernels/core/rng.h"
#include "kernels/decode/batch.h"
#include "kernels/decode/layout.h"
#include "model/params.h"
#include "model/rwkv.h"

namespace rwkv {

/// Sizes for the kernels. Throws ConfigError for another architecture or head size than 64.
decode::Shape decode_shape(const ModelConfig& config);

/// Where packed bytes go: `offset` bytes into the weights of the layout.
using PackSink = std::function<void(size_t offset, std::span<const std::byte> bytes)>;

/// Rounds every matrix to `dtype` (f32, f16, bf16) and hands it out in the layout's order, a tensor
/// or more at a time; the last layer norm before the blocks (ln0) is applied to the embedding.
void pack_decode_weights(const decode::Layout& layout, DType dtype, const Model& model,
                         const ParamStore& weights, const PackSink& sink);
/// The same for the matrices that batches want in plain order.
void pack_plain_weights(const decode::Layout& layout, const decode::PlainLayout& plain, DType dtype,
                        const Model& model, const ParamStore& weights, const PackSink& sink);
/// The vectors: layout.params() floats. Layer 0 has no value mix: zeros.
std::vector<float> pack_decode_params(const decode::Layout& layout, const Model& model,
                                      const ParamStore& weights);

/// Vectors as a model in training might have them, for benchmarks without a checkpoint.
std::vector<float> random_decode_params(const decode::Layout& layout, uint64_t seed);

}  // namespace rwkv
