#pragma once
/// "wkv7.cpu.fp16-dithered" and "wkv7.cpu.fp16-plain": WKV-7 whose state is binary16, token by
/// token, with dithered decays and without (spec rwkv7 section 5). Exact emulation: every binary16
/// operation is that of kernels/core/half.h, so a GPU that keeps the order gives the same bits.
/// Head size 64.
///
/// One token of one head, all numbers half-valued, every operation rounded to binary16:
///
///   w'[j]   = dithered_decay(w_logit[j], t + 64 h + j)                    kernels/wkv/dither.h
///   u[i]    : e = o = +0; for m = 0..31: e = fma(a[2m], S[i][2m], e),
///                                        o = fma(a[2m+1], S[i][2m+1], o);  u[i] = e + o
///   S[i][j] = fma(S[i][j], w'[j], fma(k[j], v[i], fma(u[i], b[j], S[i][j])))  three old S
///   y[i]    : the chains of u with r and the new S;  y[i] = e + o
///
/// r, w_logit, k, v, a, b and s0 come as f32 and are rounded to binary16 first; y and s_out are f32
/// tensors of half-valued numbers. With Wkv7Attrs::state_scale c, v and s0 are multiplied by c
/// ahead of rounding, y and s_out divided by it. States may also be f16 tensors, of c S. t =
/// elapsed + index of the token in the call: a run that is cut anywhere and resumed with the state
/// and the counter gives the same bits, in any batch slot. Without `elapsed` sequences start at t =
/// 0.
///
/// With Wkv7Attrs::row_exponents the rows i of S have exponents e[i]: the recurrence above runs on
/// X[i][j] = c 2^-e[i] S[i][j], and
///
///   v[i] : half(half(c v[i]) 2^-e[i]);  y[i], given out : y[i] 2^e[i] / c, a float
///   after y, if t mod 16 = 15 : every row and its exponent as kernels/wkv/row_exponent.h says
///
/// f32 states still hold S (s0 becomes half(S c 2^-e[i])), f16 ones X. Where all exponents stay 0
/// the bits are those without.
///
/// Saved: the states and exponents ahead of every 16 tokens, states as binary16, and the counter.
/// Backward (5.4): every rounding counts as identity and the dither as a constant. 16 tokens at a
/// time are run again, with the same bits; the gradient of the state is f32, of X: that of y comes
/// in as dy[i] 2^e[i] / c, that of v goes out times c 2^-e[i], and where a row was multiplied by a
/// power of two its gradient is, too. With 1 + w' for the decay the formulas are those of 3.4;
/// w_logit gets the derivative of the decay that was not rounded.

#include "kernels/wkv/wkv.h"

namespace rwkv::cpu {

extern const WkvKernel kWkv7CpuFp16Dithered, kWkv7CpuFp16Plain;

/// One token of one head. `state` is S transposed, [key j][value i], replaced by the new one; `w`
/// holds w'. 64 half-valued numbers each. u and y must not overlap the inputs.
void wkv7_fp16_token(float* state, const float* w, const float* r, const float* k, const float* v,
                     const float* a, const float* b, float* u, float* y);

}  // namespace rwkv::cpu
