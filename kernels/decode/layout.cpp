#include "kernels/decode/layout.h"

#include <algorithm>

#include "kernels/core/arena.h"
#include "kernels/core/error.h"
#include "kernels/decode/batch.h"

namespace rwkv::decode {

double Layout::token_bytes(double share) const {
  const auto d = static_cast<double>(shape.width), f = static_cast<double>(shape.ffn);
  const double value = d * f * element;
  return shape.layers * (static_cast<double>(layer_bytes) - (1 - share) * value +
                         4.0 * static_cast<int>(kParams) * d) +
         static_cast<double>(shape.vocab) * d * element;
}

Layout make_layout(const Shape& shape, DType weights, int multiprocessors, int splits, int slice) {
  RWKV_CHECK(shape.width % kHeadSize == 0 && shape.width >= kHeadSize &&
                 shape.width <= kThreads * 2 * kMaxPairs,
             ConfigError, "decoding: width is ", shape.width, ", expected a multiple of ",
             kHeadSize, " up to ", kThreads * 2 * kMaxPairs);
  RWKV_CHECK(multiprocessors >= 1, ConfigError, "decoding: ", multiprocessors, " multiprocessors");
  Layout l;
  l.shape = shape;
  l.element = static_cast<int>(dtype_bytes(weights));
  l.blocks = std::min(multiprocessors, shape.width / 2);
  const int d = shape.width, pack = l.pack();

  const int sizes[kSections] = {
      d, d, d, shape.rank[0], shape.rank[1], shape.rank[2], shape.rank[3]};
  l.section[0] = 0;
  for (int i = 0; i < kSections; ++i) l.section[i + 1] = l.section[i] + sizes[i];
  for (int b = 0; b < l.blocks; ++b) {
    const int begin = first_row(l.in_rows(), b, l.blocks),
              end = first_row(l.in_rows(), b + 1, l.blocks);
    int inputs = 0;
    for (int i = 0; i < kSections; ++i)
      inputs += begin < l.section[i + 1] && end > l.section[i] ? 1 : 0;
    l.inputs = std::max(l.inputs, inputs);
  }
  for (int i = 0; i < kLowRanks; ++i) {
    RWKV_CHECK(shape.rank[i] >= 1, ConfigError, "decoding: low-rank width ", shape.rank[i]);
    l.steps[i] = (shape.rank[i] + 8 * pack - 1) / (8 * pack);
    l.all_steps += l.steps[i];
  }

  // Wide models wait for memory: rows of a slice are 128 bytes, the smallest that it delivers well
  // with gaps between them. Narrow ones wait for each other: few parts of few activations each.
  l.splits = splits;
  l.slice = slice;
  const bool wide = d > kNarrow;
  if (slice == 0) l.slice = wide ? 8 * pack : pack;
  if (splits == 0) {
    l.splits = wide ? 4 : 2;
    while (wide && l.splits > 1 && d / l.slice * l.splits > l.blocks) l.splits /= 2;
  }
  while (slice == 0 && d / l.slice * l.splits > l.blocks) l.slice *= 2;
  const int lanes = l.slice / pack;
  RWKV_CHECK(l.slice % pack == 0 && lanes <= 32 && (lanes & (lanes - 1)) == 0 && lanes > 0 &&
                 d % l.slice == 0 && l.value_blocks() <= l.blocks && l.splits <= 8,
             ConfigError, "decoding: slices of ", l.slice, " columns and ", l.splits,
             " parts of the value matrix do not fit width ", d, " and ", l.blocks, " blocks");
  RWKV_CHECK(shape.ffn % (4 * l.splits) == 0 && shape.ffn / l.splits <= 65536, ConfigError,
             "decoding: the channel mix is ", shape.ffn, " wide, expected a multiple of ",
             4 * l.splits, " of at most ", l.splits, " x 65536");

  const auto rows = [&](int n, int k) {
    return align_up(static_cast<size_t>(n) * static_cast<size_t>(k) *
                    static_cast<size_t>(l.element));
  };
  l.in_at = 0;
  l.lora_at = l.in_at + rows(l.in_rows(), d);
  l.out_at =
      l.lora_at + align_up(static_cast<size_t>(d / 4) * static_cast<size_t>(l.all_steps) * 512);
  l.key_at = l.out_at + rows(d, d);
  l.value_at = l.key_at + rows(shape.ffn, d);
  l.layer_bytes = l.value_at + rows(shape.ffn, d);
  l.head_at = static_cast<size_t>(shape.layers) * l.layer_bytes;
  l.embedding_at = l.head_at + rows(shape.vocab, d);
  l.bytes = l.embedding_at + rows(shape.vocab, d);
  return l;
}

PlainLayout make_plain_layout(const Layout& l) {
  PlainLayout p;
  const auto d = static_cast<size_t>(l.shape.width), e = static_cast<size_t>(l.element);
  for (int i = 0; i < kLowRanks; ++i) {
    RWKV_CHECK(l.shape.rank[i] % 8 == 0, ConfigError, "decoding of batches: low-rank width ",
               l.shape.rank[i], ", expected a multiple of 8");
    p.low_at[i] = p.layer_bytes;
    p.layer_bytes += align_up(d * static_cast<size_t>(l.shape.rank[i]) * e);
  }
  p.value_at = p.layer_bytes;
  p.layer_bytes += align_up(d * static_cast<size_t>(l.shape.ffn) * e);
  p.bytes = p.layer_bytes * static_cast<size_t>(l.shape.layers);
  return p;
}

}  // namespace rwkv::decode
