#pragma once
/// WKV-4 on CUDA: launchers over raw device pointers. Nothing here allocates, synchronises or uses
/// the default stream; every launcher returns the launch error, if any.
///
/// k, v, y and their gradients are (B, T, C), bf16 or f32; everything inside is f32. State, its
/// gradients (B, C) f32, parameters and theirs (C) f32.
///
/// serial: the stabilised recurrence (spec rwkv4 3, 4.2), a thread per channel.
/// scan: the associative form (spec 5.1): threads along channels and along time, one block walking
/// a sequence or a block per tile of tokens, as the shape's plan says.
/// With sums threads use cumulative sums (spec 6) where the range of their tokens allows it.
/// Both take any number of tokens and channels and give the same bits in every run. Backward and
/// forward must be called with the same shape and plan.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace rwkv::cuda {

struct Wkv4Shape {
  int batch = 1, tokens = 1, channels = 1;
  bool f32 = false;   ///< type of the vectors
  bool sums = false;  ///< scan only: pieces of 8 tokens by cumulative sums ("cumsum")
  /// Plan of the scan, forward and backward (wkv4_scan_plan). 0: one block walks a sequence; else
  /// there is a block per tile, and that many tiles in a row are combined by each of them.
  int ahead = 0, back = 0;
};

struct Wkv4Forward {
  const void *k, *v;
  const float *tau, *u;
  const float *a0, *b0, *p0;  ///< null: fresh
  void* y;
  float *a_out, *b_out, *p_out;  ///< null: not wanted. serial: may be a0, b0, p0
  float* saved;                  ///< for the backward; null: nothing is saved
  void* workspace;               ///< wkv4_*_workspace_bytes
};

struct Wkv4Backward {
  const void *k, *v, *dy;
  const float *tau, *u;
  const float *a0, *b0, *p0;  ///< null: fresh
  const float *da_out, *db_out, *p_out;
  void *dk, *dv;                       ///< null: not wanted
  float *da0, *db0, *dp0, *dtau, *du;  ///< null: not wanted
  unsigned
      add;  ///< bit i set: gradient i of dk, dv, da0, db0, dp0, dtau, du is added to what is there
  const float* saved;
  void* workspace;
};

size_t wkv4_serial_saved_bytes(const Wkv4Shape& shape);
size_t wkv4_serial_workspace_bytes(const Wkv4Shape& shape);
cudaError_t wkv4_serial_forward(const Wkv4Shape& shape, const Wkv4Forward& io, cudaStream_t stream);
cudaError_t wkv4_serial_backward(const Wkv4Shape& shape, const Wkv4Backward& io,
                                 cudaStream_t stream);

/// Sets the plan of a shape.
void wkv4_scan_plan(Wkv4Shape& shape);
size_t wkv4_scan_saved_bytes(const Wkv4Shape& shape);
size_t wkv4_scan_workspace_bytes(const Wkv4Shape& shape);
cudaError_t wkv4_scan_forward(const Wkv4Shape& shape, const Wkv4Forward& io, cudaStream_t stream);
cudaError_t wkv4_scan_backward(const Wkv4Shape& shape, const Wkv4Backward& io, cudaStream_t stream);

/// cumsum-naive: one cumulative sum per sequence and channel. Widths of the exponents, in natural
/// logarithms, come first: (B, C) f32 at the begin of the workspace, for the caller to check
/// (wkv4_range.h) before the forward, which finds its anchors behind them.
size_t wkv4_naive_saved_bytes(const Wkv4Shape& shape);
size_t wkv4_naive_workspace_bytes(const Wkv4Shape& shape);
cudaError_t wkv4_naive_widths(const Wkv4Shape& shape, const Wkv4Forward& io, cudaStream_t stream);
cudaError_t wkv4_naive_forward(const Wkv4Shape& shape, const Wkv4Forward& io, cudaStream_t stream);
cudaError_t wkv4_naive_backward(const Wkv4Shape& shape, const Wkv4Backward& io,
                                cudaStream_t stream);

}  // namespace rwkv::cuda
