#pragma once
/// One WKV-7 problem on a device: operands and results that all variants share, and their errors.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/cases/wkv7_cases.h"
#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/ref/wkv7_ref.h"
#include "kernels/wkv/wkv.h"

namespace rwkv::bench {

enum WkvResult { kY, kSOut, kDr, kDw, kDk, kDv, kDa, kDb, kDs0, kWkvResults };
inline constexpr std::array<const char*, kWkvResults> kWkvResultNames = {
    "y", "s_out", "dr", "dw_logit", "dk", "dv", "da", "db", "ds0"};

/// Memory of one shape. One token is the decoding step: with a state, without a backward.
class WkvProblem {
 public:
  /// `kernels`: those that will run; memory for what the forward saves is shared by them.
  WkvProblem(Context& ctx, const WkvShape& shape, DType io,
             std::span<const WkvKernel* const> kernels);

  /// Operands, rounded to the element type. `data` may be of a smaller shape of the same head size;
  /// it is then repeated.
  void fill(const Wkv7Data& data);

  /// Queued on a GPU. A backward follows the forward of the same variant.
  void forward(const WkvKernel& kernel);
  void backward(const WkvKernel& kernel);

  bool decodes() const { return shape_.tokens == 1; }
  size_t saved_bytes(const WkvKernel& kernel) const;
  /// Elements of a result after a run, or its last `most` elements. Waits.
  std::vector<double> values(WkvResult which, int64_t most = INT64_MAX);

 private:
  OpCall base_call(const Wkv7Attrs& attrs);

  Context& ctx_;
  WkvShape shape_;
  Arena arena_;
  std::vector<TensorView> in_, out_, dout_, din_;
  TensorView saved_, saved_call_;
  std::vector<Accum> modes_;
};

/// Largest relative 2-norm errors over some problems; -1 where nothing was measured.
struct WkvErrors {
  std::array<double, kWkvResults> result;
  double y_long = -1;  ///< of y at 4096 tokens
  WkvErrors() { result.fill(-1); }
  double worst() const;
};

/// Errors of variants against the double reference, on the same inputs rounded to the element type.
/// CPU: `shape` cut down, inputs of a trained model. CUDA: Wkv7Kind::kPlain at (1, 128, 2), (1,
/// 128, 6), (1, 128, 12), at (1, 1024, 2) with a state, and y at (1, 4096, 2).
class WkvChecker {
 public:
  WkvChecker(Context& ctx, DType io, const WkvShape& shape);
  WkvErrors errors(const WkvKernel& kernel) const;

 private:
  struct Check {
    Wkv7Case problem;
    bool backward = true, is_long = false;
    Wkv7Data data;
    ref::Wkv7Outputs<double> out;
    ref::Wkv7Gradients grads;
  };
  void prepare(Check& check) const;

  Context& ctx_;
  DType io_;
  std::vector<Check> checks_;
};

/// Largest errors that are allowed. bf16: no worse than the best published kernels (y, dr, dk, dv
/// 0.35 %, decay logit 0.4 %, da, db 0.5 %). f32: the widest limit of the golden files; on CUDA ten
/// times that for gradients, as its serial backward steps the state back (spec rwkv7 3.5). Binary16
/// states: the golden limit for y and states, twice that for gradients.
WkvErrors wkv_error_limits(const WkvKernel& kernel);
/// "" if no error is above its limit; NaN counts as above.
std::string wkv_error_violations(const WkvErrors& errors, const WkvErrors& limits);

}  // namespace rwkv::bench
