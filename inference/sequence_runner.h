#pragma once
/// Many sequences on one model: a pool of states, and the two steps that advance them. What batches
/// requests (scheduler.h) knows nothing else of how a model is computed.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "inference/draws.h"
#include "inference/engine.h"
#include "kernels/core/tensor.h"
#include "model/config.h"

namespace rwkv {

/// A pool of slots, each with the recurrent state of one sequence, all fresh at first.
///
/// What every implementation keeps: the logits and the state after a call are a pure function of
/// the slot's state before it, of its own ids and, for prefill, of their number. Neither the other
/// sequences of a call, nor how many there are, nor their order or slots, nor any earlier call
/// changes a bit. (Implementations may offer a faster mode without that; exact() then is false.)
/// Prefill and decode of the same ids differ by rounding, and so do prefills cut in other places:
/// who wants equal bits cuts in equal places, whatever else is going on.
///
/// One thread at a time. Slots are numbered from 0; calls throw ConfigError for a slot or a token
/// id out of range, and for a slot named twice in a call.
class SequenceRunner {
 public:
  virtual ~SequenceRunner() = default;

  virtual const ModelConfig& config() const = 0;
  virtual int64_t slots() const = 0;
  /// Sequences that one decode step advances at about the cost of its largest bucket; calls with
  /// more are cut into several.
  virtual int64_t decode_batch() const = 0;
  /// Tokens that prefill takes in one piece when `left` (>= 1) of them are wanted up to the next
  /// cut: at least 1, at most `left`, and a function of `left` alone. A piece bounds the time for
  /// which decoding waits.
  virtual int64_t prefill_piece(int64_t left) const = 0;
  /// Which pieces of prompts go together: those of equal `group`, up to `batch` of them, cost one
  /// call of prefill_batch() hardly more than one alone. A function of the length alone.
  struct PrefillGroup {
    int64_t group = 0, batch = 1;
  };
  virtual PrefillGroup prefill_group(int64_t n) const { return {n, 1}; }
  /// Results do not depend on neighbours, batch size or history (see above).
  virtual bool exact() const = 0;
  /// Bytes that the states of all slots, or all plans and buffers, occupy where they are computed.
  virtual size_t pool_bytes() const = 0;
  virtual size_t workspace_bytes() const = 0;

  virtual void reset(int64_t slot) = 0;
  /// The state of slot `to` becomes that of slot `from`.
  virtual void copy(int64_t to, int64_t from) = 0;

  /// A state in host memory: tensors one after the other, without the batch dimension, as `layout`
  /// says. Only runners of the same model, types and WKV variant can load it.
  struct StateTensor {
    std::string name;  ///< as Model::state_specs has it
    TensorSpec spec;   ///< of one sequence; leading dimension 1
    size_t offset;     ///< in bytes
    /// The tensor holds this multiple of the state (Model::StateSpec). Behind a WKV state in f16
    /// are the exponents of its rows, i8.
    float scale = 1;
  };
  virtual std::span<const StateTensor> layout() const = 0;
  virtual size_t state_bytes() const = 0;
  /// Throw ShapeError unless the span has state_bytes().
  virtual void save(int64_t slot, std::span<std::byte> to) = 0;
  virtual void load(int64_t slot, std::span<const std::byte> from) = 0;

  /// Parallel form: advances one sequence by ids (1 or more), in one piece.
  /// Returns the logits after the last one, (1, V) f32 in host memory, valid until the next prefill
  /// or decode. Throws ConfigError if prefill_piece(n) is below the number of ids n.
  virtual TensorView prefill(int64_t slot, std::span<const int32_t> ids) = 0;
  /// The same for several sequences, each in one piece: any number of them, in any order. Those
  /// that do not go together (prefill_group) are computed one after the other. Returns the logits
  /// (B, V), row i for slots[i]. Throws ConfigError if a slot is given twice, ShapeError unless
  /// there is a piece for each of at least one slot.
  virtual TensorView prefill_batch(std::span<const int64_t> slots,
                                   std::span<const std::span<const int32_t>> ids);
  /// Recurrent form: ids[i] goes to slots[i]; any number of slots from 1 on, in any order.
  /// Returns the logits (B, V) f32 in host memory, row i for slots[i], valid until the next
  /// prefill or decode.
  virtual TensorView decode(std::span<const int64_t> slots, std::span<const int32_t> ids) = 0;

  /// decode(), then a draw for every sequence by requests[i].sampler. The samplers must stay where
  /// they are until finish_draws(), and nothing else is called before that. May throw as decode.
  virtual void start_draws(std::span<const int64_t> slots, std::span<const int32_t> ids,
                           std::span<const DrawRequest> requests);
  /// The same after prefill_batch(): a draw from the logits of every piece whose request has a
  /// sampler.
  virtual void start_prefill_draws(std::span<const int64_t> slots,
                                   std::span<const std::span<const int32_t>> ids,
                                   std::span<const DrawRequest> requests);
  /// What was drawn, by sequence (nothing for pieces without a sampler), to be used or moved from
  /// until draws are started again.
  virtual std::span<Drawn> finish_draws();
  /// start_draws() leaves the work to a device: the caller has time for something else meanwhile.
  virtual bool draws_aside() const { return false; }

 private:
  std::vector<Drawn> drawn_;
  /// From rows of logits, into drawn_.
  void draw_rows(const TensorView& logits, std::span<const DrawRequest> requests);

  std::vector<DrawScratch> scratch_;
  std::vector<float> prefill_logits_;
};

struct EngineRunnerOptions {
  int64_t slots = 16;
  /// Batches that decoding has plans for, ascending. Fewer sequences are filled up with padding.
  /// Empty: what keeps results exact on the engine's device, see below.
  std::vector<int64_t> buckets;
  /// The longest prefill piece, a power of two; 0: 256 on the CPU, 2048 on CUDA.
  int64_t prefill_tokens = 0;
};

/// The runner over Engine, on any device and for any architecture. States are gathered from the
/// pool into a batch and scattered back.
///
/// Why its results are exact: on the CPU products of up to 4 rows take the same sums, in the same
/// order, for each of their rows (kernels/core/gemm_cpu.cpp), everything else works row by row, and
/// so the buckets are 1, 2 and 4; larger ones are faster and not exact. On CUDA the algorithm of a
/// product depends on the number of rows, so there is a single bucket (32), padded; the sums of a
/// row do not depend on its place there. Prefill runs in pieces that are powers of two, so that the
/// number of plans stays small, one sequence at a time; with larger buckets on the CPU several.
///
/// The engine must outlive the runner, is the runner's alone, and its options must allow
/// prefill_tokens and enough plans: use runner_engine_options.
std::unique_ptr<SequenceRunner> make_engine_runner(Engine& engine,
                                                   const EngineRunnerOptions& options = {});

/// The engine options that a runner with these options needs, from those a user chose.
EngineOptions runner_engine_options(EngineOptions engine, const EngineRunnerOptions& options);

}  // namespace rwkv
