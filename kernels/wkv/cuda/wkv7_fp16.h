#pragma once
/// WKV-7 with a binary16 state on CUDA: launchers over raw device pointers, rules as in
/// wkv7_cuda.h. Head size 64. Order of operations: kernels/wkv/cpu/wkv7_fp16.h, bit for bit.
///
/// A thread owns one row of the state as 32 pairs of binary16 numbers; the even and the odd chain
/// of u and y are the two halves of one chain of fma.rn.f16x2. All other arithmetic of the forward
/// is kernels/wkv/dither.h.
///
/// Exponents of rows (kernels/wkv/row_exponent.h) are the owning thread's: rows never meet.
///
/// Backward (spec rwkv7 5.4): the forward saves the state and its exponents ahead of every 8
/// tokens; 8 tokens at a time are run again from it, with the same bits; gradients of the state and
/// all sums are fp32.

#include <cstddef>
#include <cstdint>

#include "kernels/wkv/cuda/wkv7_cuda.h"

namespace rwkv::cuda {

struct Wkv7Fp16Kind {
  bool dithered = true;
  bool io_f32 = false;         ///< vectors are fp32, else bf16
  float state_scale = 1;       ///< of Wkv7Attrs
  bool row_exponents = false;  ///< of Wkv7Attrs
};

struct Wkv7Fp16Forward {
  const void *r, *w, *k, *v, *a, *b;
  void* y;
  bool state_f16;          ///< s0 and s_out hold binary16 numbers, else fp32
  const void* s0;          ///< null: zero
  void* s_out;             ///< null: not wanted; may be s0
  const int32_t* elapsed;  ///< tokens that each sequence has seen; null: none
  int32_t* elapsed_out;    ///< null: not wanted; may be elapsed
  const int8_t* exponent;  ///< of the rows of s0, with row_exponents; null: 0
  int8_t* exponent_out;    ///< null: not wanted; may be exponent
  void* saved;             ///< for the backward; null: nothing is saved
};

size_t wkv7_fp16_saved_bytes(const Wkv7Shape& shape);
cudaError_t wkv7_fp16_forward(const Wkv7Shape& shape, Wkv7Fp16Kind kind, const Wkv7Fp16Forward& io,
                              cudaStream_t stream);
/// One token per sequence, a binary16 state in and out, nothing saved.
cudaError_t wkv7_fp16_step(const Wkv7Shape& shape, Wkv7Fp16Kind kind, const Wkv7Fp16Forward& io,
                           cudaStream_t stream);
/// Gradients of states are fp32, whatever type the states have.
cudaError_t wkv7_fp16_backward(const Wkv7Shape& shape, Wkv7Fp16Kind kind, const Wkv7Backward& io,
                               cudaStream_t stream);

}  // namespace rwkv::cuda
