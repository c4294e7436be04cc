#pragma once
/// One WKV-4 problem on a device: operands and results that all variants share, and their errors.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cases/wkv4_cases.h"
#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/wkv/wkv.h"

namespace rwkv::bench {

/// Which decay rates the operands have.
enum class Wkv4Rates : uint8_t {
  kModel,  ///< e^-5 to e^3 over the channels, as a model starts
  kSlow,   ///< so slow that one cumulative sum over the whole sequence stays in the range of f32
};
/// "model" or "slow", as in records.
std::string_view wkv4_rates_name(Wkv4Rates rates);

/// Memory of one shape (heads = channels, head_size = 1).
class Wkv4Problem {
 public:
  /// `kernels`: those that will run; memory for what the forward saves is shared by them.
  Wkv4Problem(Context& ctx, const WkvShape& shape, DType io,
              std::span<const WkvKernel* const> kernels);

  /// Operands, rounded to the element type. `data` may have fewer tokens and sequences, and is then
  /// repeated; its channels and state must be those of the shape. kSlow takes all but the rates
  /// from it.
  void fill(const Wkv4Data& data);

  /// Queued on a GPU. A backward follows the forward of the same variant with the same rates.
  /// Throws ConfigError if a variant refuses the operands.
  void forward(const WkvKernel& kernel, Wkv4Rates rates = Wkv4Rates::kModel);
  void backward(const WkvKernel& kernel, Wkv4Rates rates = Wkv4Rates::kModel);

  /// After a forward: the share of the work for which the variant fell back to the recurrence; -1
  /// if it has no other algorithm. Waits.
  double replaced_share(const WkvKernel& kernel, Wkv4Rates rates = Wkv4Rates::kModel);
  size_t saved_bytes(const WkvKernel& kernel) const { return kernel.saved_bytes(shape_); }

  const TensorView& y() const { return out_[0]; }
  /// a, b, p (i = 0, 1, 2) as they leave; with a state only.
  const TensorView& state(size_t i) const { return out_.at(1 + i); }
  /// Of k, v, a0, b0, p0 (the latter three with a state only).
  const TensorView& gradient(size_t i) const { return din_.at(i); }
  const TensorView& tau_gradient() const { return dparam_[0]; }
  const TensorView& u_gradient() const { return dparam_[1]; }

 private:
  struct Call;

  Context& ctx_;
  WkvShape shape_;
  Arena arena_;
  std::vector<TensorView> in_, out_, dout_, din_, param_, slow_param_, dparam_;
  TensorView saved_, saved_call_;
  std::vector<Accum> modes_;
};

/// Errors against the double reference: relative 2-norms, but `log_sum`, the largest difference of
/// p + ln b. NaN where a result is not finite.
enum Wkv4Error {
  kW4Y,
  kW4Ratio,
  kW4LogSum,
  kW4Dk,
  kW4Dv,
  kW4Da0,
  kW4Db0,
  kW4Dtau,
  kW4Du,
  kW4Errors
};
inline constexpr std::array<const char*, kW4Errors> kWkv4ErrorNames = {
    "y", "a/b", "p+ln b", "dk", "dv", "da0", "db0", "dtau", "du"};
using Wkv4Errors = std::array<double, kW4Errors>;

/// Largest errors of a variant over three problems with a state of 2 x 200 tokens: rates of a
/// model, rates 0.001 to 20 in random order, slow rates; cumsum-naive: only the last, all it takes.
Wkv4Errors wkv4_errors(Context& ctx, const WkvKernel& kernel);
/// f32: 1e-5; bf16: 4e-3, as vectors are rounded to it, the states (f32) 1e-5; p + ln b 5e-4.
Wkv4Errors wkv4_error_limits(DType io);
/// "" if no error is above its limit; NaN counts as above.
std::string wkv4_error_violations(const Wkv4Errors& errors, const Wkv4Errors& limits);

}  // namespace rwkv::bench
