#pragma once
/// The op type: one coarse differentiable operation, declared once, with a hand-written forward
/// and backward kernel per device. Tests, benchmarks and the planner walk the same declarations.

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace rwkv {

/// What a kernel is handed. Views that an op declared optional may be null.
///
/// Forward:  in, param, out, saved.
/// Backward: in and out as far as the op's masks ask for them (others are null), param, saved,
///           dout (all present; the planner zero-fills gradients nobody wrote), din with din_mode,
///           dparam with dparam_mode. kSkip: leave it alone (the view may be null); kWrite: every
///           element is overwritten; kAdd: added to.
struct OpCall {
  std::span<const TensorView> in, param, out, saved;
  std::span<const TensorView> dout, din, dparam;
  std::span<const Accum> din_mode, dparam_mode;
  const void* attrs = nullptr;  ///< the op's own plain struct (see its header), may be null

  template <class T>
  const T& attr() const {
    return *static_cast<const T*>(attrs);
  }
};

/// Shape inference: checks inputs, parameters and attributes, sizes outputs and saved tensors.
struct ShapeCall {
  std::span<const TensorSpec> in, param;
  const void* attrs = nullptr;
  std::vector<TensorSpec> out, saved;  ///< filled by infer
  size_t workspace_bytes = 0;          ///< filled by infer: the larger need of forward, backward

  template <class T>
  const T& attr() const {
    return *static_cast<const T*>(attrs);
  }
};

using KernelFn = void (*)(Context&, const OpCall&);

struct Op {
  std::string_view name;            ///< also in traces, dumps, tests and benchmarks
  void (*infer)(ShapeCall&);        ///< throws ShapeError, DTypeError or ConfigError
  uint32_t backward_reads_in;       ///< bit i: backward reads in[i]
  uint32_t backward_reads_out;      ///< bit i: backward reads out[i]
  std::array<KernelFn, 2> forward;  ///< by Device; null: not in this build
  std::array<KernelFn, 2> backward;
  /// Multiply-adds count 2. For traces and MFU; null means elementwise (counted as 0).
  double (*forward_flops)(const ShapeCall&) = nullptr;
  double (*backward_flops)(const ShapeCall&) = nullptr;
  /// The forward runs with null `saved` views, which plans without a backward then pass.
  bool saved_optional = false;
  /// Given the attributes: the gradients of the inputs and those of the parameters come from
  /// separate work, so that two calls, each skipping one part, cost no more than one. Null: no.
  bool (*backward_splits)(const void* attrs) = nullptr;
  /// Bit i: the gradient of in[i] is that of out[0]. The planner then lets them share memory where
  /// it can, and skips the input; kernels still have to honour the other modes.
  uint32_t passes_gradient = 0;
  /// A backward may overwrite what the forward saved: one per forward (or, where the op says that
  /// it splits, one for each part).
  bool backward_uses_up_saved = false;
};

/// Types. Activations (inputs, outputs and their gradients) are f32 or bf16, the same throughout a
/// call; so are weights that are matrices of a product or table (linear, low_rank W1 and W2,
/// embedding, head). Vectors (norm weights, mixes, biases, r_k) and saved statistics are f32, and
/// so is every parameter gradient, whatever the parameter's type. CPU kernels are f32 only.

/// Calls a kernel after looking it up. Throws DeviceError "op X has no CUDA kernel in this build",
/// DTypeError if the CPU is handed bf16.
void run_forward(Context& ctx, const Op& op, const OpCall& call);
void run_backward(Context& ctx, const Op& op, const OpCall& call);

/// Every op of the project, in a fixed order (kernels/ops/op_table.cpp).
std::span<const Op* const> all_ops();
/// By name; throws ConfigError listing the names there are.
const Op& find_op(std::string_view name);

}  // namespace rwkv
