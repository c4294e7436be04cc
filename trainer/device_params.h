#pragma once
/// Parameters, gradients and moments on a GPU, with the host copies that files are made of.

#include <vector>

#include "kernels/core/memory.h"
#include "kernels/ops/adamw.h"
#include "model/params.h"
#include "trainer/optimizer.h"
#include "trainer/value_pattern.h"

namespace rwkv {

/// Owns the device side of a training step: f32 masters, gradients and moments, and bf16 copies of
/// the matrices when the activations are bf16. All work is queued on the context.
class DeviceParams {
 public:
  /// `trained` as for AdamW. Throws DeviceError if the memory cannot be had.
  DeviceParams(Context& ctx, const ParamRegistry& params, DType activations,
               const AdamWOptions& options, const std::vector<bool>& trained);

  /// What kernels read (masters, or bf16 copies of the matrices), and the f32 gradients.
  std::span<const TensorView> values() const { return views_; }
  std::span<const TensorView> grads() const { return grads_.views(); }

  /// Host to device: masters, their bf16 copies and the moments.
  void upload(Context& ctx, const ParamStore& values, const ParamStore& m, const ParamStore& v);
  /// Every parameter gets the pattern's values, moments stay: for benchmarks.
  void fill(const ValuePattern& pattern);
  /// Device to host; waits.
  void download(Context& ctx, ParamStore& values, ParamStore& m, ParamStore& v) const;

  /// Queues the sum of the step's losses: kWrite for the first micro-batch, then kAdd.
  void add_loss(Context& ctx, const TensorView& loss, Accum mode);
  /// Queues norm, clipping and update number `update` (from 1). Nothing is updated if the norm or
  /// the sum of the losses is not finite.
  void update(Context& ctx, double lr, int64_t update);
  struct Outcome {
    double norm;  ///< of the gradients; NaN if a loss was not finite
    double loss_sum;
  };
  /// Of the last update; waits for it.
  Outcome read_outcome(Context& ctx);

  size_t bytes() const;

 private:
  AdamWOptions options_;
  ParamStore masters_, grads_, m_, v_;
  Arena copies_, small_;
  std::vector<TensorView> views_;
  TensorView pieces_, outcome_;
  HostBuffer read_;  ///< where the outcome arrives
  int64_t piece_count_ = 0;
};

}  // namespace rwkv
