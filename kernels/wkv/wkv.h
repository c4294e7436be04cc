#pragma once
/// WKV variants: one algorithm each, forward, backward, single-token step and saved state together.
/// Halves of two variants are never combined.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/ops/op.h"

namespace rwkv {

/// Sizes of one call. WKV-7: N = head size, state (B, H, N, N) with rows = value, columns = key.
/// WKV-4 has no heads: C = heads * head_size channels, however that product is made up; its own
/// calls say heads = C, head_size = 1. State three times (B, C).
struct WkvShape {
  int64_t batch = 1, tokens = 1, heads = 1, head_size = 64;
  bool has_state = false;  ///< an initial state comes in and the final one goes out
};

/// Name: <op>.<device>.<algorithm><chunk>.<arithmetic>, e.g. "wkv7.cpu.chunk32.f32".
struct WkvKernel {
  std::string_view name;
  std::string_view op;      ///< "wkv7" or "wkv4"
  std::string_view family;  ///< short name: "serial", "chunk", "scan", ...
  Device device = Device::kCpu;
  DType io = DType::kF32;  ///< element type of the vectors
  /// Numbers that the state holds; kF16: binary16 numbers, a variant that "auto" never takes, that
  /// counts tokens (`elapsed` of kWkv7) and whose states may be f16 tensors.
  DType state = DType::kF32;
  int min_sm = 0;          ///< lowest CUDA architecture, e.g. 90; 0 on the CPU
  int64_t t_multiple = 1;  ///< T must be a multiple of this
  int64_t min_tokens = 1;  ///< and at least this
  bool deterministic = true;
  std::span<const int> head_sizes;  ///< empty: any
  /// Bytes that the forward leaves for the backward, and scratch of the larger of both.
  size_t (*saved_bytes)(const WkvShape&) = nullptr;
  size_t (*workspace_bytes)(const WkvShape&) = nullptr;
  KernelFn forward = nullptr, backward = nullptr;
  /// One token per sequence, T = 1, same OpCall as the forward, nothing saved; may equal forward.
  KernelFn step = nullptr;
  /// Variants that replace their own algorithm by the recurrence where numbers would leave its
  /// range: the share (0 to 1) of the work that was replaced in a forward that has run, given its
  /// call, saved included. Null: never replaced. Waits for the device.
  double (*replaced_share)(Context&, const OpCall&) = nullptr;
  std::string_view note;  ///< where it wins, for --list
};

/// Every variant of this build, in a fixed order.
std::span<const WkvKernel* const> all_wkv_kernels();

/// Picks a variant. `wanted` is a full name, a family ("serial", "chunk", ...: the family's best
/// on that device) or "auto" (auto_table.h, which cites its measurements).
/// Throws ConfigError listing every variant of the op with the reason why it does not fit.
const WkvKernel& select_wkv(std::string_view op, Device device, DType io, const WkvShape& shape,
                            std::string_view wanted);

/// Table of all variants (of `op`; empty: of both ops) with what each supports and, for `shape`,
/// whether it fits and why not; and what "auto" takes.
std::string list_wkv(const WkvShape& shape, std::string_view op = {});

/// Whether `wanted` (as in select_wkv) means a variant that counts tokens: one with a binary16
/// state. Its states fit in f16 tensors.
bool wkv_counts_tokens(std::string_view wanted);

struct Wkv7Attrs {
  int64_t head_size = 64;
  const WkvKernel* kernel = nullptr;  ///< resolved once, at plan time
  /// Variants with a binary16 state only: a power of two c. They keep c S, take c v for v (rounded
  /// after the product) and give y / c, which changes nothing but the range: S, u = S a and y
  /// overflow from 65504 / c on, elements of S and v below 6.1e-5 / c lose bits. An f16 state holds
  /// c S, an f32 one S; gradients are those of S.
  float state_scale = 1;
  /// Variants with a binary16 state only: every row of a state has an exponent of its own, which
  /// follows its largest element (kernels/wkv/row_exponent.h), so that neither long sequences nor
  /// heads that expand leave the range. Without a state exponents begin at 0.
  bool row_exponents = false;
};

/// The WKV-7 recurrence per sequence and head (spec rwkv7 2.3), state S (N x N):
///   u = S a;   S = S diag(decay) + u b^T + v k^T;   y = S r
///   decay = exp(-exp(-1/2) * sigmoid(w_logit))
/// in r, w_logit, k, v, a, b (B, T, C)
///    [, s0 (B, H, N, N) f32 [, elapsed (B) i32 [, exponent (B, H, N) i8]]]
/// out y (B, T, C) [, s_out (B, H, N, N) f32 [, elapsed + T (B) i32 [, exponent (B, H, N) i8]]],
///     as many as come in
/// elapsed: tokens that a sequence has seen before the call, for variants with a binary16 state
/// only (they take 0 without it). exponent: with Wkv7Attrs::row_exponents and a state only, and
/// then needed. Both may be updated in place, as s0, and have no gradient. Those variants also take
/// s0 as f16, then s_out is f16 too; gradients of states stay f32. saved one f32 tensor of the
/// variant's saved_bytes; null or absent where no backward follows (one token then takes the
/// variant's step, and s_out may be s0 itself). backward reads: in but s0, elapsed and exponent;
/// its gradients are those of every input, s0 included, with the gradient of s_out as the last
/// dout. source: spec rwkv7 3.4, 4.1-4.3; kernels/ref/wkv7_ref.h
extern const Op kWkv7;

struct Wkv4Attrs {
  const WkvKernel* kernel = nullptr;  ///< resolved once, at plan time: select_wkv("wkv4", ...)
};

/// The WKV-4 average per sequence and channel (spec rwkv4 3). With rate = exp(time_decay), true
/// sums A = a e^p and B = b e^p of what came before, and u = time_first:
///   y = (A + e^(u + k) v) / (B + e^(u + k))
///   A = e^-rate A + e^k v ;  B = e^-rate B + e^k
/// in k, v (B, T, C) [, a0, b0, p0 (B, C) f32; all three or none]
/// param time_decay, time_first (C) f32
/// out y (B, T, C) [, a_out, b_out, p_out (B, C) f32, present iff the state comes in]
/// A fresh state is a = b = 0, p = -1e38. The triple that leaves is one of many that mean the same
/// sums: compare a / b and p + ln b.
/// saved one f32 tensor of the variant's saved_bytes; null or absent where no backward follows (one
/// token then takes the variant's step, and the outgoing state may lie where the incoming one
/// does). backward reads: in, param, saved, y, p_out. Gradients: k, v, a0, b0, and the parameters'
/// summed over the batch. Gradients arriving at a_out and b_out hold p_out fixed, those leaving at
/// a0 and b0 hold p0 fixed. That loses nothing: a function of the true sums A and B has its whole
/// gradient in a and b. A gradient at p_out is not read; that of p0 is zero. source: spec rwkv4 3,
/// 4, 5.1, 6; kernels/ref/wkv4_ref.h
extern const Op kWkv4;

}  // namespace rwkv
