#pragma once
/// Prompts in the parallel form on the weights and states of a DecodeModel.

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "inference/decode_model.h"

namespace rwkv {

struct PrefillOptions {
  int64_t tokens = 2048;  ///< the longest piece of a sequence; a multiple of 16
  int64_t batch = 1;      ///< the most sequences at a time
  /// The most rows of a call, sequences times padded length, at least `tokens`; 0: batch * tokens.
  int64_t rows = 0;
  bool losses = false;  ///< losses() is wanted, which needs memory for logits
};

/// One launch graph per number of sequences and padded length, recorded at its first use; the first
/// use of the longest takes a second or more, since products are tried out.
class DecodePrefill {
 public:
  /// `model` must outlive it and have DecodeOptions::prefill. Throws ConfigError for options that
  /// make no sense, DeviceError without memory.
  DecodePrefill(DecodeModel& model, const PrefillOptions& options);

  const PrefillOptions& options() const { return options_; }
  size_t work_bytes() const { return work_.bytes(); }

  /// Rows that a piece of n tokens takes: 16, 32, 48, 64, 96, 128, ..., at most options().tokens.
  int64_t padded(int64_t n) const;
  /// How many of `left` tokens to take in the next piece, which depends on `left` alone: all of
  /// them, or fewer where two pieces take less time than one padded one.
  int64_t piece(int64_t left) const;

  /// Advances the sequences in `slots` by ids[i] each, in one piece of at most options().tokens
  /// (a sequence may also stand still: no ids). Queued. A sequence's results do not depend on the
  /// others, but by rounding on their number and on the padded length of the longest: so `fill_to`
  /// sequences are computed even if there are fewer, the rest of them nobody's, and with equal
  /// `fill_to` and padded length a sequence gets the same bits alone and among others.
  /// Throws ConfigError or ShapeError.
  void run(std::span<const int64_t> slots, std::span<const std::span<const int32_t>> ids,
           int64_t fill_to = 0);
  /// The same with what is in place, for timing.
  void run_again();
  /// Logits after the last token of each sequence of the last run, f32 on the device: (batch,
  /// vocab).
  TensorView logits() const { return logits_; }

  /// Advances one sequence by ids in pieces, without a launch graph: the losses of ids[1], ids[2],
  /// ... given those before. Waits.
  std::vector<float> losses(int64_t slot, std::span<const int32_t> ids);

  /// Seconds of one more run by stage, in order: kernels launched one by one. Waits.
  std::vector<std::pair<std::string, double>> stages();

 private:
  using Shape = std::pair<int64_t, int64_t>;  ///< sequences, rows of each
  size_t bytes_of(const Shape& shape) const;  ///< of activations
  size_t most_bytes() const;                  ///< over all shapes that options() allow
  void send(const Shape& shape, std::span<const int64_t> slots,
            std::span<const std::span<const int32_t>> ids, std::span<const int32_t> targets = {});
  void queue(const Shape& shape, bool losses = false,
             const std::function<void(const char*)>* mark = nullptr);
  const LaunchGraph& graph_of(const Shape& shape);

  DecodeModel& model_;
  PrefillOptions options_;
  Arena work_;
  TensorView ids_, all_logits_, losses_, activations_, logits_;
  HostBuffer host_;
  decode::BatchEvents events_;
  std::map<Shape, LaunchGraph> graphs_;
  Shape last_{0, 0};
};

}  // namespace rwkv
