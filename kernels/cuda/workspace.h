#pragma once
/// Scratch memory of the CUDA kernels, in plain C++ so that the shape inferences can plan it. All
/// bounds depend on the shapes only, never on the device: the same sums on every GPU.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/core/arena.h"
#include "kernels/core/dtype.h"

namespace rwkv::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Rows are cut into chunks so that `tiles` column tiles make about this many thread blocks: two
/// for each of the 132 multiprocessors of an H200.
inline constexpr int64_t kRowBlocks = 264;

struct RowPlan {
  int64_t chunks, rows;  ///< number of chunks, rows of each (the last may have fewer)
};
inline RowPlan row_plan(int64_t rows, int64_t tiles, int64_t blocks = kRowBlocks) {
  const int64_t wanted = std::max<int64_t>(1, blocks / tiles);
  const int64_t each = std::max<int64_t>(8, ceil_div(rows, wanted));
  return {ceil_div(rows, each), each};
}
/// Workspace for `sums` sums over the rows of each of C channels, one partial sum per chunk. Column
/// tiles have at most 256 channels; narrower ones mean fewer chunks.
inline size_t row_partial_bytes(int64_t rows, int64_t c, int64_t sums,
                                int64_t blocks = kRowBlocks) {
  return static_cast<size_t>(row_plan(rows, ceil_div(c, 256), blocks).chunks * c * sums) *
         sizeof(float);
}
/// The backwards that work per head: three blocks for each multiprocessor.
inline constexpr int64_t kHeadBlocks = 396;
/// The same for layer norm, whose (half as large) blocks span whole rows.
inline constexpr int64_t kWholeRowBlocks = 396;
inline size_t whole_row_partial_bytes(int64_t rows, int64_t c, int64_t sums) {
  return static_cast<size_t>(row_plan(rows, 1, kWholeRowBlocks).chunks * c * sums) * sizeof(float);
}

/// Embedding backward: tokens are sorted and handled in pieces of this many.
inline constexpr int64_t kEmbeddingPiece = 32;
/// Sorted keys and positions, the sort's own memory (generously bounded: cub states its need only
/// on a device) and two partial rows per piece.
inline size_t embedding_sort_bytes(int64_t tokens) {
  return align_up(static_cast<size_t>(tokens) * 16 + (size_t{4} << 20));
}
inline size_t embedding_bytes(int64_t tokens, int64_t c) {
  return 4 * align_up(static_cast<size_t>(tokens) * sizeof(int32_t)) +
         embedding_sort_bytes(tokens) +
         static_cast<size_t>(ceil_div(tokens, kEmbeddingPiece) * 2 * c) * sizeof(float);
}

/// Low rank: columns that carry the bias through the second product (two used, see low_rank.cu).
inline constexpr int64_t kLowRankExtra = 8;
inline size_t low_rank_bytes(int64_t rows, int64_t rank, int64_t n, DType type, bool biased) {
  const int64_t width = rank + (biased ? kLowRankExtra : 0);
  const size_t hidden = align_up(static_cast<size_t>(rows * rank) * dtype_bytes(type));
  const size_t matrix = align_up(static_cast<size_t>(width * n) * sizeof(float));
  return std::max(hidden, matrix);
}

/// Feed forward, where the gradients of hidden values do not take the place of these: rows at a
/// time.
inline constexpr int64_t kFeedForwardRows = 2048;
inline size_t feed_forward_bytes(int64_t rows, int64_t hidden, DType type) {
  return static_cast<size_t>(std::min(rows, kFeedForwardRows) * hidden) * dtype_bytes(type);
}

/// Logits: rows are padded to whole 16-byte packs and to what the matrix units like.
constexpr int64_t logits_stride(int64_t vocab) {
  return ceil_div(vocab, 64) * 64;
}

}  // namespace rwkv::cuda
