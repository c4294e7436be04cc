#pragma once
/// Draws on a GPU for the sequences of a runner: only tokens, and the log-probabilities that
/// somebody asked for, travel to the host.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "inference/draws.h"
#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/core/memory.h"
#include "kernels/sample/device_draw.h"

namespace rwkv {

/// Keeps the penalties, biases and bans of every slot's sampler on the device and sends what has
/// changed. Rows that it cannot hold (very many different tokens) are drawn on the host, from
/// logits that travel: the tokens are the same either way. One thread at a time.
class DeviceSampler {
 public:
  /// For slots 0 .. slots - 1 and logits of `vocab`; at most `slots` rows between finishes.
  /// Throws DeviceError.
  DeviceSampler(Context& ctx, int64_t slots, int64_t vocab);
  /// Whether the kernels can draw from such a vocabulary.
  static bool takes(int64_t vocab) { return vocab <= sample::kMostVocab; }

  /// Queues draws from logits (n, vocab) on the device, which are left changed; row i is the
  /// sequence in slots[i]. The requests' samplers must stay until finish().
  void queue(std::span<const int64_t> slots, std::span<const DrawRequest> requests, float* logits);
  /// Waits; the results of all rows queued since the last time, valid until the next queue().
  std::span<Drawn> finish();
  /// Device memory.
  size_t bytes() const { return arena_.bytes() + lists_.bytes(); }

 private:
  struct Slot {
    uint64_t id = 0;  ///< whose list is on the device; 0: nobody's
    std::optional<size_t> changed;
  };
  struct Row {
    int64_t slot;
    DrawRequest request;
    std::optional<size_t> host;  ///< drawn there: which of the rows of host_logits_
  };
  /// Number of adjustments on the device, those that changed being on their way; none if it cannot.
  std::optional<size_t> send_list(int64_t slot, const DrawRequest& request);
  bool make_lists();
  Drawn result(const Row& row, size_t i) const;

  Context& ctx_;
  int64_t vocab_;
  Arena arena_, lists_;
  TensorView rows_, updates_, results_, top_, adjustments_, before_;
  HostBuffer host_rows_, host_updates_, host_results_, host_top_, host_logits_;
  std::vector<Slot> slots_;
  std::vector<Row> queued_;
  std::vector<Drawn> drawn_;
  size_t updates_used_ = 0, host_rows_used_ = 0;
  bool any_top_ = false, lists_failed_ = false;
  std::vector<DrawScratch> scratch_;
};

}  // namespace rwkv
