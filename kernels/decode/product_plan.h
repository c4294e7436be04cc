#pragma once

namespace rwkv::decode {

/// How a launch of the decoding products cuts its work. A tile is `height` rows of weights and
/// `columns` sequences. Results do not depend on it.
struct ProductPlan {
  int columns = 0;   ///< 16, 32, 64, 128, 160, 240, 256 or 320
  int pair = 1;      ///< 2: blocks of two tiles below each other share the sequences' vectors
  int split = 1;     ///< blocks that share the pieces of a tile's sums; divides their number
  int height = 128;  ///< or 64: the kernel for few rows, pair 1, up to 64 columns
};

}  // namespace rwkv::decode
