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
  DType io = DType::kF32;     ///< element type of the vectors
  DType state = DType::kF32;  ///< element type of the state
  int min_sm = 0;             ///< lowest CUDA architecture, e.g. 90; 0 on the CPU
  int64_t t_multiple = 1;     ///< T must be a multiple of this
  int64_t min_tokens = 1;     ///< and at least this
  bool deterministic = true;
  std::span<const int> head_sizes;
  /// Bytes that the forward leaves for the backward, and scratch of the larger of both.
  size_t (*saved_bytes)(const WkvShape&) = nullptr;
  size_t (*workspace_bytes)(const WkvShape&) = nullptr;
  KernelFn forward = nullptr, backward = nullptr;
  /// One token per sequence, T = 1, same OpCall as the forward, nothing saved; may equal forward.
  KernelFn step = nullptr;
  std::string_view note;  ///< where it wins, for --list
};

/// Every variant of this build, in a fixed order.
std::span<const WkvKernel* const> all_wkv_kernels();

/// Picks a variant. `wanted` is a full name, a family ("serial", "chunk", ...: the family's best
/// on that device) or "auto" (auto_table.h, which cites its measurements).
/// Throws ConfigError listing every variant of the op with the reason why it does not fit.
const WkvKernel& select_wkv(std::string_view op, Device device, DType io, const WkvShape& shape,
                            std::string_view wanted);

/// Table of all variants with what each supports and, for `shape`, whether it fits and why not.
std::string list_wkv(const WkvShape& shape);

struct Wkv7Attrs {
  int64_t head_size = 64;
  const WkvKernel* kernel = nullptr;  ///< resolved once, at plan time
};

/// The WKV-7 recurrence per sequence and head (spec rwkv7 2.3), state S (N x N):
///   u = S a;   S = S diag(decay) + u b^T + v k^T;   y = S r
///   decay = exp(-exp(-1/2) * sigmoid(w_logit))
/// in r, w_logit, k, v, a, b (B, T, C) [, s0 (B, H, N, N) f32]
/// out y (B, T, C) [, s_out (B, H, N, N) f32, present iff s0 is]
/// saved one f32 tensor of the variant's saved_bytes; null or absent where no backward follows (one
/// token then takes the variant's step, and s_out may be s0 itself). backward reads: in but s0; its
/// gradients are those of every input, s0 included, with the gradient of s_out as the last dout.
/// source: spec rwkv7 3.4, 4.1-4.3; kernels/ref/wkv7_ref.h
extern const Op kWkv7;

}  // namespace rwkv
