#pragma once
/// Where the weights of RWKV-7 lie for decoding on a GPU, and who works on which of them.
///
/// One token of one sequence reads every weight once, so the kernel is a stream of weights; all
/// blocks of one launch work through the layers together, in five stages each:
///
///   in     rows of W_r, W_k, W_v and the transposed first low-rank matrices, (3 D + ranks) x D
///   lora   per head: second low-rank matrices, key preparation, WKV step, group norm, gate
///   out    rows of W_o, D x D
///   key    rows of the channel mix's key matrix, F x D, squared ReLU
///   value  columns of its value matrix for the activations that are not zero
///
/// and a last one for the head, V x D. Rows are cut into contiguous pieces, one per block, so that
/// a block's bytes of a stage lie next to each other.

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/core/half.h"

namespace rwkv::decode {

inline constexpr int kHeadSize = 64;
inline constexpr int kWarps = 16;  ///< of a block
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kPassBytes = 16 * kThreads;  ///< 16 for every thread
inline constexpr int kSlotPasses = 2;             ///< of a slot of a block's ring
inline constexpr int kMaxSlots = 16;
inline constexpr int kMaxPairs = 4;  ///< of channels per thread: width up to 4096
inline constexpr int kNarrow =
    1024;  ///< models up to this width wait for each other's results more than for memory
inline constexpr int kLowRanks = 4;  ///< decay w, in-context rate a, value mix v, gate g

/// Vectors of a layer, f32, each `width` long, in this order.
enum Param : int {
  kLn1Weight,
  kLn1Bias,
  kMixR,
  kMixK,
  kMixV,
  kMixW,
  kMixA,
  kMixG,
  kLn2Weight,
  kLn2Bias,
  kMixFfn,
  kW0,
  kA0,
  kV0,
  kKeyScale,  ///< k_k
  kKeyRate,   ///< k_a
  kBonus,     ///< r_k
  kLnXWeight,
  kLnXBias,
  kParams
};

struct Shape {
  int layers = 0, width = 0, ffn = 0, vocab = 0;
  int rank[kLowRanks] = {};  ///< w, a, v, g
  RWKV_HOST_DEVICE int heads() const { return width / kHeadSize; }
};

/// Sections of the rows of stage `in`; section 5 reads the value's input again.
inline constexpr int kSections = 7;

/// Sizes and places for one shape, weight type and GPU. Plain data: it is handed to kernels.
struct Layout {
  Shape shape;
  int element = 2;             ///< bytes of a weight
  int blocks = 0;              ///< of the launch; every one has rows in in, out and key
  int splits = 0, slice = 0;   ///< value: parts of the rows, columns of a slice
  int section[kSections + 1];  ///< first rows of r, k, v, w, a, v-mix, g, and their end
  int steps[kLowRanks];        ///< lora: 512 bytes of a warp's four channels, per matrix
  int all_steps = 0;
  int inputs = 0;  ///< mixed inputs that a block's rows of stage `in` can need

  size_t in_at = 0, lora_at = 0, out_at = 0, key_at = 0, value_at = 0;  ///< bytes, in a layer
  size_t layer_bytes = 0, head_at = 0, embedding_at = 0, bytes = 0;

  RWKV_HOST_DEVICE int pack() const { return 16 / element; }  ///< weights of 16 bytes
  RWKV_HOST_DEVICE int in_rows() const { return section[kSections]; }
  RWKV_HOST_DEVICE int value_blocks() const { return shape.width / slice * splits; }
  /// Elements of a low-rank vector, padded to whole steps, and where each begins.
  RWKV_HOST_DEVICE int padded_rank(int i) const { return steps[i] * 8 * pack(); }
  RWKV_HOST_DEVICE int padded_ranks() const { return all_steps * 8 * pack(); }
  size_t params() const {
    return (static_cast<size_t>(shape.layers) * kParams + 2) * static_cast<size_t>(shape.width);
  }
  /// Bytes that one token reads of the weights: all but the embedding; `share` of the value matrix.
  double token_bytes(double share) const;
};

/// `multiprocessors`: the most blocks. `splits`, `slice`: 0 chooses. Throws ConfigError for shapes
/// that the kernels cannot do: head size 64, width a multiple of 64 up to 4096, ffn of `splits`
/// times 4.
Layout make_layout(const Shape& shape, DType weights, int multiprocessors, int splits = 0,
                   int slice = 0);

/// First of `rows` rows that belong to `block` of `blocks`.
RWKV_HOST_DEVICE int first_row(int rows, int block, int blocks) {
  return static_cast<int>(static_cast<int64_t>(rows) * block / blocks);
}

/// Byte offset within a layer of element (f, column) of the value matrix [F, D] as stored:
/// [slice][f][column of the slice].
inline size_t value_offset(const Layout& l, int f, int column) {
  return l.value_at + ((static_cast<size_t>(column / l.slice) * static_cast<size_t>(l.shape.ffn) +
                        static_cast<size_t>(f)) *
                           static_cast<size_t>(l.slice) +
                       static_cast<size_t>(column % l.slice)) *
                          static_cast<size_t>(l.element);
}

/// Byte offset within a layer of element (rank index, channel) of second low-rank matrix i:
/// [head][step][warp][channel of the warp's four][8 packs]: 512 bytes a step and warp, 16 per lane.
inline size_t lora_offset(const Layout& l, int i, int rank, int channel) {
  const int head = channel / kHeadSize, warp = channel % kHeadSize / 4, inside = channel % 4;
  int step = rank / (8 * l.pack());
  for (int m = 0; m < i; ++m) step += l.steps[m];
  const int place = rank % (8 * l.pack());
  return l.lora_at +
         (static_cast<size_t>(head) * static_cast<size_t>(l.all_steps) +
          static_cast<size_t>(step)) *
             kPassBytes +
         static_cast<size_t>(warp * 512 + inside * 128 + place * l.element);
}

}  // namespace rwkv::decode
