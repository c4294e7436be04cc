#pragma once
/// WKV-7 on CUDA: launchers over raw device pointers. Nothing here allocates, synchronises or uses
/// the default stream; every launcher returns the launch error, if any.
///
/// Vectors r, w, k, v, a, b, y and their gradients are (B, T, H, N), states (B, H, N, N) in fp32
/// with rows = value index, columns = key index. w is the decay logit. N is 32, 64 or 128.
///
/// chunk: WY form in chunks of 16 tokens on tensor cores (spec rwkv7 4.1, 4.2), bf16 operands and
/// fp32 accumulation, state in fp32 registers; a bf16 state is saved every 32 tokens. segments > 1
/// cuts the sequence: the segments' operators are found in parallel, a short scan joins them, then
/// all segments run at once (spec 4.4 scheme 3). With many heads the forward still walks whole
/// heads, and segments only serve the backward.
/// serial: the plain recurrence in fp32 (spec 2.3, 3.4, 3.5), the yardstick.
/// Both take any number of tokens from 1, and give the same bits in every run. Backward and forward
/// must be called with the same shape, segments included.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace rwkv::cuda {

struct Wkv7Shape {
  int batch = 1, tokens = 1, heads = 1, head_size = 64;
  int segments = 1;  ///< chunk only: parts of the sequence that run side by side
};

/// Head sizes of all kernels in this file; others give cudaErrorInvalidValue.
inline constexpr int kWkv7HeadSizes[] = {32, 64, 128};

struct Wkv7Forward {
  const void *r, *w, *k, *v, *a, *b;  ///< bf16, or fp32 for serial with io_f32
  const float* s0;                    ///< null: zero
  void* y;
  float* s_out;     ///< null: not wanted
  void* saved;      ///< for the backward; null: nothing is saved
  void* workspace;  ///< wkv7_*_workspace_bytes
};

struct Wkv7Backward {
  const void *r, *w, *k, *v, *a, *b, *dy;
  bool has_s0;                        ///< the forward had an initial state
  const float* ds_out;                ///< null: zero
  void *dr, *dw, *dk, *dv, *da, *db;  ///< null: not wanted
  float* ds0;                         ///< null: not wanted
  unsigned add;  ///< bit i set: gradient i of dr, dw, dk, dv, da, db, ds0 is added to what is there
  const void* saved;
  void* workspace;
};

/// Memory is planned before a device is chosen: segments and pieces are counted for this many
/// processors (an H100 or H200), whatever the card has. Results depend on it by rounding only.
inline constexpr int kWkv7PlannedProcessors = 132;

/// Number of segments that fills `multiprocessors`: 1 if heads alone fill more than half, else at
/// least 2, none shorter than 128 tokens if there are more. Needs kWkv7ScanTokens or more.
int wkv7_scan_segments(const Wkv7Shape& shape, int multiprocessors);
inline constexpr int kWkv7ScanTokens = 64;
size_t wkv7_chunk_saved_bytes(const Wkv7Shape& shape);
size_t wkv7_chunk_workspace_bytes(const Wkv7Shape& shape);
cudaError_t wkv7_chunk_forward(const Wkv7Shape& shape, const Wkv7Forward& io, cudaStream_t stream);
/// The same with vectors in f16 and f16 operands, heads of 64, nothing saved: for inference. States
/// and y should stay below 65504 in size.
cudaError_t wkv7_chunk_forward_f16(const Wkv7Shape& shape, const Wkv7Forward& io,
                                   cudaStream_t stream);
cudaError_t wkv7_chunk_backward(const Wkv7Shape& shape, const Wkv7Backward& io,
                                cudaStream_t stream);

size_t wkv7_serial_saved_bytes(const Wkv7Shape& shape, bool io_f32);
cudaError_t wkv7_serial_forward(const Wkv7Shape& shape, const Wkv7Forward& io, bool io_f32,
                                cudaStream_t stream);
cudaError_t wkv7_serial_backward(const Wkv7Shape& shape, const Wkv7Backward& io, bool io_f32,
                                 cudaStream_t stream);

}  // namespace rwkv::cuda
