#pragma once
/// Kernels between the products of one token of many sequences. Matrices are row-major; `rows` are
/// sequences. Pointers are on the device, to f16 or bf16 unless they say otherwise.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/decode/layout.h"

namespace rwkv::cuda::decode {

/// Residual stream, layer norm and token shift.
struct Mix {
  int rows = 0, width = 0, multiprocessors = 0;
  float* residual = nullptr;        ///< [rows][width], f32
  const void* add = nullptr;        ///< [rows][width], joins the residual first; null: nothing
  const void* embedding = nullptr;  ///< [vocab][width]: the residual begins with its rows; or null
  const int32_t* tokens = nullptr;  ///< with embedding
  const float *weight = nullptr, *bias = nullptr;  ///< of the norm
  /// Null: the norm alone goes out, and the counters of the sequences are counted up.
  const float* mix = nullptr;  ///< [outputs][width]
  int outputs = 1;             ///< 1 or 6
  void* shift = nullptr;       ///< row of the first slot; read, then replaced
  int64_t shift_stride = 0;    ///< elements from slot to slot
  const int32_t* slots = nullptr;
  int32_t* elapsed = nullptr;
  void* out = nullptr;  ///< [outputs][rows][width]
};
/// `overlap`: the kernel may start while the one before in the stream still runs.
void launch_mix(DType type, const Mix& mix, bool overlap, cudaStream_t stream);

/// Everything between the products of a head and the output product.
struct Heads {
  int rows = 0, heads = 0, layer = 0;
  int all_slots = 0, multiprocessors = 0;
  const void *r = nullptr, *k = nullptr, *v = nullptr;  ///< [rows][width]
  const void* low[rwkv::decode::kLowRanks] = {};        ///< w, a, v, g: [rows][width], no bias yet
  void* v_first = nullptr;                              ///< [rows][width]; written by layer 0
  const float* params = nullptr;                        ///< of the layer
  std::byte* wkv = nullptr;                             ///< of the layer in the first slot
  int64_t wkv_stride = 0;                               ///< bytes from slot to slot
  bool half_state = false;
  float scale = 1, inverse = 1;  ///< of f16 states: they hold scale S
  int8_t* exponents = nullptr;   ///< of rows of f16 states: of the layer in the first slot
  int64_t exponents_stride = 0;  ///< from slot to slot
  const int32_t *slots = nullptr, *elapsed = nullptr;
  void* out = nullptr;  ///< [rows][width]
};
void launch_heads(DType type, const Heads& heads, bool overlap, cudaStream_t stream);

/// What Heads::low is the product of: the second low-rank matrices with what the first ones gave.
struct HeadLows {
  const void* middle = nullptr;  ///< [rows][ld]
  int ld = 0;
  const void* w[rwkv::decode::kLowRanks] = {};  ///< [width][rank]
  int rank[rwkv::decode::kLowRanks] = {};       ///< multiples of 8
  int first[rwkv::decode::kLowRanks] = {};      ///< column of middle
};
/// Whether all blocks that have both the heads and these products run at once.
bool heads_take_lows(const Heads& heads, const HeadLows& lows);
/// Heads with these products (kUp of kernels/decode/batch.h) in the same launch: the same bits;
/// Heads::low is not read. Where heads_take_lows.
void launch_heads_with_lows(DType type, const Heads& heads, const HeadLows& lows, bool overlap,
                            cudaStream_t stream);

/// x = max(x, 0)^2; n is a multiple of 8.
void launch_squared_relu(DType type, void* x, int64_t n, cudaStream_t stream);

}  // namespace rwkv::cuda::decode
