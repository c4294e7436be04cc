#pragma once
/// A block's stream of weights: its pieces of all stages of all layers, in the order of their use,
/// through a ring of slots in shared memory that the copy engine fills. What is asked for depends
/// on nothing that is computed, so the ring is full again while the block waits for others.
///
/// One thread (`produce`) asks, for a piece as soon as all warps are done with the slot. All warps
/// of the block go through all pieces (`Stream`): a piece of rows is as many whole rows as the
/// block's threads have 16 bytes of, so that a thread meets the same columns in every row.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/decode/exchange.cuh"
#include "kernels/cuda/decode/weights.cuh"
#include "kernels/decode/layout.h"

namespace rwkv::cuda::decode {

using rwkv::decode::first_row;
using rwkv::decode::kMaxSlots;
using rwkv::decode::kPassBytes;
using rwkv::decode::kSlotPasses;
using rwkv::decode::kThreads;
using rwkv::decode::kWarps;
using rwkv::decode::Layout;

/// A block's rows of the stages, and its share of regions; divisions are slow, so they are made
/// once.
struct Ranges {
  enum Of : int { kIn, kOut, kKey, kHead, kParamLines, kShiftLines, kOwnPairs, kCount };
  int begin[kCount], end[kCount];
};

/// Addresses of the two barriers of a slot: `full` when its piece is there, `empty` when all warps
/// are done with it.
struct Slots {
  uint32_t ring, barriers;
  int count;
  __device__ __forceinline__ uint32_t full(int slot) const {
    return barriers + 8u * static_cast<uint32_t>(slot);
  }
  __device__ __forceinline__ uint32_t empty(int slot) const {
    return barriers + 8u * static_cast<uint32_t>(kMaxSlots + slot);
  }
};

inline constexpr int kBarrierBytes = 2 * kMaxSlots * 8;

/// One thread, before anybody uses the slots and a barrier of the block.
__device__ __forceinline__ void make_barriers(const Slots& s) {
  for (int i = 0; i < s.count; ++i) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(s.full(i)) : "memory");
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(s.empty(i)), "r"(kWarps)
                 : "memory");
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void wait_phase(uint32_t barrier, uint32_t parity) {
  for (int looks = 0;; ++looks) {
    uint32_t there;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(there)
        : "r"(barrier), "r"(parity)
        : "memory");
    if (there != 0) return;
    if (looks > kMostWaits) __trap();
  }
}

/// Goes through the pieces of a block.
class Cursor {
 public:
  /// `head`: the block's, or negative. `value_bytes`: of the block's part of a value matrix, at
  /// `value_at` of a layer, if it comes through the stream.
  __device__ __forceinline__ Cursor(const Layout& layout, const Ranges& ranges,
                                    const std::byte* weights, int head, int pass_bytes,
                                    size_t value_at, int value_bytes)
      : l_(layout),
        ranges_(ranges),
        weights_(weights),
        value_at_(value_at),
        head_(head),
        pass_bytes_(pass_bytes),
        value_bytes_(value_bytes) {
    seek();
  }
  __device__ __forceinline__ bool done() const { return stage_ == kEnd; }
  __device__ __forceinline__ const std::byte* at() const { return at_; }
  __device__ __forceinline__ int bytes() const { return min(left_, piece_); }
  __device__ __forceinline__ void next() {
    at_ += piece_;
    left_ -= piece_;
    if (left_ <= 0) seek();
  }

 private:
  enum Stage : int { kBefore = -1, kIn, kLora, kOut, kKey, kValue, kHead, kEnd };

  /// To the next stage in which this block has something.
  __device__ __forceinline__ void seek() {
    do {
      if (stage_ == kValue)
        stage_ = ++layer_ < l_.shape.layers ? kIn : kHead;
      else
        ++stage_;
      if (stage_ == kEnd) return;
      if (stage_ == kIn)
        rows(Ranges::kIn, l_.in_at);
      else if (stage_ == kOut)
        rows(Ranges::kOut, l_.out_at);
      else if (stage_ == kKey)
        rows(Ranges::kKey, l_.key_at);
      else if (stage_ == kHead)
        rows(Ranges::kHead, l_.head_at);
      else {
        piece_ = kSlotPasses * kPassBytes;
        left_ = value_bytes_;
        size_t from = value_at_;
        if (stage_ == kLora) {
          left_ = head_ < 0 ? 0 : l_.all_steps * kPassBytes;
          from = l_.lora_at + static_cast<size_t>(max(head_, 0) * l_.all_steps) * kPassBytes;
        }
        at_ = weights_ + from;
      }
      if (stage_ != kHead) at_ += static_cast<size_t>(layer_) * l_.layer_bytes;
    } while (left_ <= 0);
  }
  __device__ __forceinline__ void rows(Ranges::Of range, size_t from) {
    const int row_bytes = l_.shape.width * l_.element;
    piece_ = kSlotPasses * pass_bytes_;
    left_ = (ranges_.end[range] - ranges_.begin[range]) * row_bytes;
    at_ = weights_ + from + static_cast<size_t>(ranges_.begin[range]) * row_bytes;
  }

  const Layout& l_;
  const Ranges& ranges_;
  const std::byte* weights_;
  size_t value_at_;
  int head_, pass_bytes_, value_bytes_;
  int stage_ = kBefore, layer_ = 0, piece_ = 0, left_ = 0;
  const std::byte* at_ = nullptr;
};

/// Bytes of a slot, if threads have `row_packs` packs of a row.
constexpr int slot_bytes(int row_packs) {
  return kSlotPasses * kPassBytes * row_packs;
}

/// One thread: has all pieces of `next` brought to the slots. No more than `flight` of them are on
/// their way at a time: what other blocks compute would have to wait behind them.
template <int kRowPacks>
__device__ __forceinline__ void produce(const Slots& s, Cursor next, int flight) {
  uint64_t once;  // what has been copied to a slot is not read again
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
  int slot = 0, landing = 0, flying = 0;  // next to fill; the oldest on its way; how many are
  // An empty slot at first: the phase before the first counts as over.
  uint32_t parity = 1, landing_parity = 0;
  for (; !next.done(); next.next()) {
    wait_phase(s.empty(slot), parity);
    if (flying == flight) {
      wait_phase(s.full(landing), landing_parity);
      if (++landing == s.count) {
        landing = 0;
        landing_parity ^= 1u;
      }
      --flying;
    }
    ++flying;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(s.full(slot)),
                 "r"(next.bytes())
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1], %2, [%3], %4;" ::"r"(s.ring + static_cast<uint32_t>(slot * slot_bytes(kRowPacks))),
        "l"(next.at()), "r"(next.bytes()), "r"(s.full(slot)), "l"(once)
        : "memory");
    if (++slot == s.count) {
      slot = 0;
      parity ^= 1u;
    }
  }
}

/// A warp's view of the pieces.
template <int kRowPacks>
class Stream {
 public:
  __device__ __forceinline__ Stream(const Slots& slots, const std::byte* ring, int lane)
      : slots_(slots), ring_(ring), leader_(lane == 0) {}

  /// The next piece.
  __device__ __forceinline__ const std::byte* wait() {
    wait_phase(slots_.full(slot_), parity_);
    return ring_ + slot_ * slot_bytes(kRowPacks);
  }
  /// Every lane is done with the piece.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (leader_)
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(slots_.empty(slot_))
                   : "memory");
    if (++slot_ == slots_.count) {
      slot_ = 0;
      parity_ ^= 1u;
    }
  }

 private:
  const Slots slots_;
  const std::byte* ring_;
  bool leader_;
  int slot_ = 0;
  uint32_t parity_ = 0;
};

/// n sums of every lane added over the warp: lane i has the sum of number i / (32 / n).
template <int n>
__device__ __forceinline__ float warp_sums(float (&x)[n], int lane) {
  int left = n;
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) {
    if (left == 1) {
      x[0] += __shfl_xor_sync(0xffffffffu, x[0], o);
      continue;
    }
    left /= 2;
    const bool upper = (lane & o) != 0;
#pragma unroll
    for (int i = 0; i < n / 2; ++i)
      if (i < left) {
        const float give = upper ? x[i] : x[i + left], keep = upper ? x[i + left] : x[i];
        x[i] = keep + __shfl_xor_sync(0xffffffffu, give, o);
      }
  }
  return x[0];
}

}  // namespace rwkv::cuda::decode
