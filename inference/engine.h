#pragma once
/// Runs a model forward, sequence by sequence or many at once, and keeps the plans for it.

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "model/device_weights.h"
#include "model/params.h"
#include "model/rwkv.h"
#include "model/state.h"

namespace rwkv {

struct EngineOptions {
  std::string wkv = "auto";  ///< WKV variant, see select_wkv
  /// Longest piece that the parallel form takes at once: bounds the memory for activations. A GPU
  /// wants more tokens at once than the default.
  int64_t prefill_tokens = 256;
  /// Plans are made per (batch, tokens, outputs) and the least recently used one is dropped.
  int64_t max_plans = 24;
  Device device = Device::kCpu;
  /// Of activations and matrices: f32, or bf16 on CUDA. Logits, losses and WKV states are f32; the
  /// latter f16 where the WKV variant is one with a binary16 state.
  DType dtype = DType::kF32;
  /// CPU only: of the matrices but the embedding: f32, or copies in bf16 or i8 (a scale per row,
  /// kernels/core/packed_rows.h). Decoding is as fast as they are read. Sums stay f32.
  DType weights = DType::kF32;
  /// CPU only: the caller's weights keep their values, so that matrices may be copied in the order
  /// that decoding likes best (model/params.h: sparse inputs): for f32 a fifth of a small model.
  /// Implied where `weights` is not f32.
  bool fixed_weights = false;
};

/// Prefill and decode. On the CPU the weights are borrowed: training may change their values
/// between calls, the engine then uses the new ones, unless `fixed_weights` holds. On CUDA it
/// copies them when it is made. One thread at a time. The state belongs to the caller and lies
/// where the engine computes; its batch says how many sequences a call advances, and token ids come
/// as (B, T), row-major. Logits and losses are handed out in host memory, and every call waits for
/// them.
///
/// A long input is cut into pieces of prefill_tokens and a rest, so results depend on the lengths
/// that a sequence was fed in only by rounding, and never on the other sequences' tokens.
///
/// Every call throws ShapeError if the number of ids is not a multiple of the batch, ConfigError
/// for ids outside of the vocabulary.
class Engine {
 public:
  /// Model and weights (in host memory) must outlive the engine and stay where they are.
  /// Throws ConfigError if no WKV variant fits or the CPU is to compute in bf16, DeviceError if
  /// there is no such device or too little memory on it.
  Engine(const Model& model, const ParamStore& weights, EngineOptions options = {});

  const Model& model() const { return model_; }
  const EngineOptions& options() const { return options_; }
  /// A fresh state for this engine, which must outlive it.
  RnnState new_state(int64_t batch = 1) {
    return RnnState(ctx_, model_, batch, options_.dtype, options_.wkv);
  }

  /// Parallel form: advances the state by T >= 1 tokens per sequence.
  /// Returns the logits after the last one, (B, V) f32, valid until the next call.
  TensorView prefill(RnnState& state, std::span<const int32_t> ids);
  /// Recurrent form: one token per sequence. Result like prefill's.
  TensorView decode(RnnState& state, std::span<const int32_t> ids);

  /// Called with the index of the piece's first token and the logits (B, n, V) after its n tokens.
  using LogitsSink = std::function<void(int64_t first, TensorView logits)>;
  /// Parallel form with the logits after every token, in order, piece by piece.
  void all_logits(RnnState& state, std::span<const int32_t> ids, const LogitsSink& sink);

  /// Parallel form; loss (B, T) becomes -log p(target | tokens up to there) in nats.
  /// Throws ShapeError unless ids, targets and loss have the same size.
  void token_loss(RnnState& state, std::span<const int32_t> ids, std::span<const int32_t> targets,
                  std::span<float> loss);

  /// Activations of the plans that are in memory now, on the engine's device.
  size_t plan_bytes() const;
  size_t plan_count() const { return plans_.size(); }
  Context& context() { return ctx_; }

 private:
  struct Entry;
  Entry& plan_for(int64_t batch, int64_t tokens, GraphOptions::Mode mode);
  /// Runs one piece. `offset` and `stride` say where its tokens lie in ids (B, T).
  Entry& run_piece(RnnState& state, std::span<const int32_t> ids, int64_t offset, int64_t stride,
                   int64_t tokens, GraphOptions::Mode mode, std::span<const int32_t> targets = {});
  /// Calls copy(i) for every tensor of a state; on the CPU threads share them.
  template <class Copy>
  void copy_state(size_t count, const Copy& copy);
  /// (B, n) of ids, starting at `offset` of rows of `stride`, to a plan's input.
  void send(std::span<const int32_t> ids, int64_t offset, int64_t stride, const TensorView& to);
  /// The result in host memory.
  TensorView fetch(const TensorView& result);
  /// Checks sizes and ids; returns T.
  int64_t check_ids(const RnnState& state, std::span<const int32_t> ids, const char* doing) const;

  const Model& model_;
  const ParamStore& weights_;
  EngineOptions options_;
  Context ctx_;
  bool packed_ = false;
  DeviceWeights device_weights_;  ///< on CUDA, or packed
  std::vector<int32_t> host_ids_;
  std::vector<float> host_result_;
  std::list<std::unique_ptr<Entry>> plans_;  ///< most recently used first

 public:
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();
};

}  // namespace rwkv
