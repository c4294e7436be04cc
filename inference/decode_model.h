#pragma once
/// RWKV-7 on a GPU with kernels made for decoding: weights, states of many sequences, single steps.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/core/launch_graph.h"
#include "kernels/core/memory.h"
#include "kernels/decode/batch.h"
#include "kernels/decode/layout.h"
#include "kernels/decode/prefill.h"
#include "kernels/decode/step.h"
#include "model/config.h"
#include "model/params.h"
#include "model/rwkv.h"

namespace rwkv {

struct DecodeOptions {
  DType dtype = DType::kF16;  ///< of matrices, embedding and shift states: f16, bf16 or f32
  bool half_state = true;     ///< WKV states in f16 with dither (docs/fp16-state.md), else f32
  int64_t slots = 1;          ///< sequences whose states are kept
  /// Numbers of sequences that step_batch has launch graphs for, ascending; empty: step only. Needs
  /// f16 or bf16, and a second copy of the value matrices.
  std::vector<int64_t> buckets;
  /// Prompts in the parallel form are wanted (DecodePrefill), which needs f16 or bf16 and, as
  /// buckets do, the second copy of the value matrices.
  bool prefill = false;
  /// Rows of the channel mix's value matrix whose activation is zero are not read.
  bool skip = true;
  /// Large products of batches by cuBLASLt, whose order of sums depends on the bucket.
  bool vendor = false;
  int plans_tried = 8;  ///< ways to cut a product that are timed at a bucket's first use
  // How a batch of one is worked on; -1 or 0 chooses by size.
  int stream_value = -1;  ///< 1: StepCall::stream_value, and nothing is skipped
  int splits = 0, slice = 0, nap = -1, ring = 0, flight = -1;
};

/// Weights and states. One thread at a time; work is queued on the context, which must outlive it.
class DecodeModel {
 public:
  /// Packs and uploads. `model` and `weights` are not needed afterwards. Throws ConfigError for
  /// what the kernels cannot do (decode_shape, make_layout), DeviceError without a GPU or memory.
  DecodeModel(Context& ctx, const Model& model, const ParamStore& weights,
              const DecodeOptions& options);
  /// Random weights, for benchmarks: matrices N(0, 1/(4 D)), half of the squared ReLU's outputs
  /// zero.
  DecodeModel(Context& ctx, const ModelConfig& config, uint64_t seed, const DecodeOptions& options);

  const decode::Layout& layout() const { return layout_; }
  Context& context() { return ctx_; }
  const DecodeOptions& options() const { return options_; }
  /// Bytes on the device: weights; states of one sequence.
  size_t weight_bytes() const { return weights_.bytes() + params_.bytes(); }
  size_t state_bytes() const;

  /// The state of a fresh sequence. Queued.
  void reset(int64_t slot);
  /// `to` goes on where `from` is. Queued.
  void copy_state(int64_t to, int64_t from);

  /// Parts of a sequence's state, on the device: (layers, 2, width) in the type of the weights,
  /// what time mix and channel mix remember of the token before; (layers, heads, 64, 64) f32, or
  /// f16 scaled by kHalfStateScale and the exponents of rows, (layers, heads, 64) i8 (zero for
  /// f32); (1) i32, its tokens so far.
  TensorView shift_of(int64_t slot) const;
  TensorView wkv_of(int64_t slot) const;
  TensorView exponents_of(int64_t slot) const;
  TensorView elapsed_of(int64_t slot) const { return elapsed_.slice(slot, slot + 1); }

  /// One token of the sequence in `slot`, queued: nothing is allocated and nobody waits.
  /// Throws ConfigError for a token or slot that there is not.
  void step(int64_t slot, int32_t token);
  /// The same with the slot and token that are in place, for timing.
  void step_again();
  /// One token of each of several sequences, at most as many as the largest bucket, queued; the
  /// rest of the bucket works on a state that nobody has. A bucket's first use takes a second or
  /// more. A sequence's results do not depend on the others, its place or the bucket (with
  /// DecodeOptions::vendor they do on the bucket, by rounding). Throws ConfigError for a token or
  /// slot that there is not.
  void step_batch(std::span<const int64_t> slots, std::span<const int32_t> tokens);
  /// The same with what is in place, for timing; `bucket` was used before.
  void batch_again(int64_t bucket);
  /// Seconds of one more batch by stage, in order: kernels launched one by one, with gaps. Waits.
  std::vector<std::pair<std::string, double>> batch_stages(int64_t bucket);
  /// What was timed at the bucket's first use: seconds of the products of a kind (BatchProduct) in
  /// all layers, by the way they were cut.
  struct PlanTime {
    int kind = 0;
    decode::ProductPlan plan;
    double seconds = 0;
  };
  const std::vector<PlanTime>& plan_times(int64_t bucket) { return batch_of(bucket).times; }
  /// Logits of the last batch, f32 on the device: (bucket, vocab), row i of the call's i-th slot.
  TensorView batch_logits() const { return batch_logits_; }

  /// Logits of the last step, f32 on the device: (vocab). Valid until the next step.
  TensorView logits() const { return logits_; }

  /// Weights and states for prefill, the rest of the call still empty; with DecodeOptions::prefill.
  decode::PrefillCall prefill_call() const;
  const decode::PlainLayout& plain_layout() const { return plain_layout_; }

  /// Share of the channel mix's activations that were zero in the last layer of the last step.
  /// Waits.
  double zero_share();
  /// Times of one more step by stage (kernels/decode/step.h), in clocks of a multiprocessor, for
  /// all blocks: [blocks][layers + 1][kStamps]. Waits.
  std::vector<int64_t> stamps();

 private:
  DecodeModel(Context& ctx, const decode::Shape& shape, const DecodeOptions& options);
  decode::StepCall call() const;
  void check(int64_t slot, int32_t token) const;
  /// Slots and tokens, filled up to the bucket, to the device.
  void send_batch(int64_t bucket, std::span<const int64_t> slots, std::span<const int32_t> tokens);
  struct Batch {
    LaunchGraph graph;
    decode::BatchPlans plans;
    std::vector<PlanTime> times;
  };
  /// The bucket's launch graph and all that belongs to it, made at its first use.
  const Batch& batch_of(int64_t bucket);
  void choose_plans(int64_t bucket, Batch& batch);
  decode::BatchCall batch_call(int64_t bucket, const decode::BatchPlans& plans) const;
  void queue_batch(int64_t bucket, const decode::BatchPlans& plans,
                   const std::function<void(const char*)>* mark = nullptr);

  Context& ctx_;
  DecodeOptions options_;
  decode::Layout layout_;
  Arena weights_, params_, states_, work_;
  TensorView shift_, wkv_, exponents_, elapsed_, ids_, logits_, exchange_;
  HostBuffer host_ids_;
  // Batches.
  decode::PlainLayout plain_layout_;
  decode::BatchEvents events_;
  Arena plain_, batch_;
  TensorView batch_ids_, all_logits_, batch_logits_, batch_work_;
  HostBuffer host_batch_;
  std::map<int64_t, Batch> batches_;
};

}  // namespace rwkv
