#pragma once
/// A warp's stream of weights: its rows of all stages of all layers, in the order of their use,
/// through a ring of slots in shared memory that the copy engine fills. What is asked for depends
/// on nothing that is computed, so a ring is full again while its warp waits for other blocks.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/decode/exchange.cuh"
#include "kernels/cuda/decode/weights.cuh"
#include "kernels/decode/layout.h"

namespace rwkv::cuda::decode {

using rwkv::decode::first_row;
using rwkv::decode::kSlotBytes;
using rwkv::decode::kWarps;
using rwkv::decode::Layout;

/// A block's rows of the stages, and its share of regions; divisions are slow, so they are made
/// once.
struct Ranges {
  enum Of : int { kIn, kOut, kKey, kHead, kParamLines, kShiftLines, kOwnPairs, kCount };
  int begin[kCount], end[kCount];
};

class Stream {
 public:
  /// `ring`, `barriers`: this warp's, in shared memory. `head`: the block's, or negative.
  __device__ __forceinline__ Stream(const Layout& layout, const Ranges& ranges,
                                    const std::byte* weights, int head, std::byte* ring,
                                    uint64_t* barriers, int slots)
      : l_(layout),
        ranges_(ranges),
        weights_(weights),
        ring_(ring),
        ring_address_(static_cast<uint32_t>(__cvta_generic_to_shared(ring))),
        barriers_(static_cast<uint32_t>(__cvta_generic_to_shared(barriers))),
        slots_(slots),
        head_(head),
        warp_(static_cast<int>(threadIdx.x) / 32),
        leader_(threadIdx.x % 32 == 0) {
    if (leader_) {
      for (int i = 0; i < slots_; ++i)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers_ + 8u * i) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    seek();
    for (; slot_ < slots_; ++slot_) ask();
    slot_ = 0;
  }

  /// The next piece: 2 KiB, or what is left of the row.
  __device__ __forceinline__ const uint4* wait() {
    const uint32_t barrier = barriers_ + 8u * static_cast<uint32_t>(slot_);
    for (int64_t begin = 0;;) {
      uint32_t there;
      asm volatile(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}"
          : "=r"(there)
          : "r"(barrier), "r"(parity_)
          : "memory");
      if (there != 0) break;
      if (begin == 0) begin = clock64();
      if (clock64() - begin > kMostClocks) __trap();
    }
    return reinterpret_cast<const uint4*>(ring_ + slot_ * kSlotBytes);
  }

  /// Every lane is done with the piece.
  __device__ __forceinline__ void release() {
    __syncwarp();
    ask();
    if (++slot_ == slots_) {
      slot_ = 0;
      parity_ ^= 1u;
    }
  }

 private:
  enum Stage : int { kBefore = -1, kIn, kLora, kOut, kKey, kHead, kEnd };

  /// To the first row of the next stage in which this warp has one.
  __device__ __forceinline__ void seek() {
    const int width_bytes = l_.shape.width * l_.element;
    for (;;) {
      if (stage_ == kKey)
        stage_ = ++layer_ < l_.shape.layers ? kIn : kHead;
      else
        ++stage_;
      if (stage_ == kEnd) return;
      int range = Ranges::kOut;
      size_t base = l_.out_at;
      if (stage_ == kIn) {
        range = Ranges::kIn;
        base = l_.in_at;
      } else if (stage_ == kKey) {
        range = Ranges::kKey;
        base = l_.key_at;
      } else if (stage_ == kHead) {
        range = Ranges::kHead;
        base = l_.head_at;
      }
      row_bytes_ = width_bytes;
      int row = ranges_.begin[range] + warp_;
      end_ = ranges_.end[range];
      if (stage_ == kLora) {
        base = l_.lora_at;
        row_bytes_ = l_.all_steps * 512;
        row = head_ * kWarps + warp_;
        end_ = head_ < 0 ? row : row + 1;
      }
      if (row >= end_) continue;
      row_ = row;
      at_ = weights_ + base + static_cast<size_t>(row) * static_cast<size_t>(row_bytes_);
      if (stage_ != kHead) at_ += static_cast<size_t>(layer_) * l_.layer_bytes;
      left_ = row_bytes_;
      return;
    }
  }

  /// Fills slot_ with the next piece that was not asked for yet.
  __device__ __forceinline__ void ask() {
    if (stage_ == kEnd) return;
    const int bytes = min(left_, kSlotBytes);
    if (leader_) {
      const uint32_t barrier = barriers_ + 8u * static_cast<uint32_t>(slot_);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(bytes)
                   : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
          "[%3];" ::"r"(ring_address_ + static_cast<uint32_t>(slot_ * kSlotBytes)),
          "l"(at_), "r"(bytes), "r"(barrier)
          : "memory");
    }
    at_ += bytes;
    left_ -= bytes;
    if (left_ > 0) return;
    row_ += kWarps;
    if (row_ < end_) {
      at_ += static_cast<size_t>(row_bytes_) * (kWarps - 1);
      left_ = row_bytes_;
    } else {
      seek();
    }
  }

  const Layout& l_;
  const Ranges& ranges_;
  const std::byte* weights_;
  std::byte* ring_;
  uint32_t ring_address_, barriers_;
  int slots_, head_, warp_;
  bool leader_;
  int slot_ = 0;
  uint32_t parity_ = 0;
  // What is asked for next.
  int stage_ = kBefore, layer_ = 0, row_ = 0, end_ = 0, row_bytes_ = 0, left_ = 0;
  const std::byte* at_ = nullptr;
};

/// The stream's next row times x (shared memory, `width` floats in their places); every lane gets
/// it.
template <class T>
__device__ __forceinline__ float row_product(Stream& stream, const float* x, int width, int lane) {
  constexpr int kPacksOfSlot = kSlotBytes / 16;
  const int packs = width / kPackOf<T>;
  Sum sum;
  for (int first = 0; first < packs; first += kPacksOfSlot) {
    const uint4* const w = stream.wait();
    uint4 raw[kPacksOfSlot / 32];
#pragma unroll
    for (int i = 0; i < kPacksOfSlot / 32; ++i)
      raw[i] = first + 32 * i + lane < packs ? w[32 * i + lane] : uint4{0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kPacksOfSlot / 32; ++i)
      if (first + 32 * i + lane < packs) multiply<T>(raw[i], x, first + 32 * i + lane, width, sum);
    stream.release();
  }
  return warp_sum(sum.all());
}

}  // namespace rwkv::cuda::decode
