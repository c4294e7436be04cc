#pragma once
/// A model made ready for many sequences: on the CPU, with the kernels made for decoding on a GPU,
/// or with the general ones there; and how much memory that takes.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "inference/engine.h"
#include "inference/sequence_runner.h"

namespace rwkv {

struct ServingOptions {
  EngineOptions engine;        ///< device, and what an Engine works with
  EngineRunnerOptions runner;  ///< slots, prefill_tokens; buckets of an Engine
  /// On CUDA: decode with kernels/decode, which take RWKV-7 with heads of 64. Then `weights` is
  /// f16, bf16 or f32, and WKV states are f16 with dither (half_state) or f32.
  bool decode_kernels = false;
  DType weights = DType::kF16;
  bool half_state = false;
  /// Results do not depend on neighbours (SequenceRunner::exact).
  bool exact = true;
};

/// Models that kernels/decode take.
bool decode_kernels_take(const ModelConfig& config);

/// Memory on the device, in bytes, as computed from sizes alone; docs/serving.md has the formulas.
struct ServingSize {
  size_t weights = 0;  ///< for decoding, with what batches want in another order
  size_t prefill = 0;  ///< weights of the prefill, where they are others
  size_t state = 0;    ///< of one sequence
  size_t states = 0;   ///< of all slots
  size_t logits = 0;   ///< of a step for all slots, and what draws from them
  size_t all() const { return weights + prefill + states + logits; }
};
/// Without activations: those of a piece of a prompt, of a batch, and what libraries take.
ServingSize serving_size(const ModelConfig& config, const ServingOptions& options);
std::string to_string(const ServingSize& size, int64_t slots);

/// Where a model is to go.
struct ServingRoom {
  size_t bytes = 0;
  std::string memory;  ///< "GPU memory", "memory"
  std::string words;   ///< whose these bytes are: "what is free on the GPU"
  std::string advice;  ///< what else can be done than to take less; may be empty
};
/// What is free on the GPU, or what the machine or its container leaves and `taken`, which is the
/// model's already. bytes is SIZE_MAX where nothing can be told.
ServingRoom serving_room(Device device, size_t taken);
/// Throws DeviceError if `size` does not go into `room`, and says about how many slots do.
void check_room(const ServingSize& size, int64_t slots, const ServingRoom& room);

/// Throws ConfigError for what the kernels cannot do, DeviceError for more slots than there is
/// memory for: before weights are read, which may take long.
void check_serving(const ModelConfig& config, const ServingOptions& options);

/// Owns a runner and what it works with.
class Serving {
 public:
  virtual ~Serving() = default;
  virtual SequenceRunner& runner() = 0;
};

/// Model and weights must outlive what is made. Throws what check_serving throws, and DeviceError
/// when memory ends.
std::unique_ptr<Serving> make_serving(const Model& model, const ParamStore& weights,
                                      const ServingOptions& options);
/// The part with kernels/decode. Throws DeviceError in builds without CUDA.
std::unique_ptr<Serving> make_decode_serving(const Model& model, const ParamStore& weights,
                                             const ServingOptions& options);

}  // namespace rwkv
