#pragma once
/// AdamW over the flat parameter memory.

#include <cstdint>
#include <vector>

#include "model/params.h"

namespace rwkv {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.99, eps = 1e-18;
  double weight_decay = 0;  ///< of the parameters whose spec says so
  double clip = 1;          ///< limit of the global gradient norm, 0: none
};

/// The numbers of one update, equal for all parameters.
struct AdamWRates {
  float beta1, beta2, one_minus_beta1, one_minus_beta2;
  float correction1, correction2;  ///< 1 / (1 - beta^n)
  float eps, scale;                ///< scale: of the gradients, by the clip rule
};
/// Update number n (from 1) with gradients of this global norm.
AdamWRates adamw_rates(const AdamWOptions& options, int64_t n, double norm);
/// The update of n elements on the CPU; lr and decay are those of their parameter.
void adamw_elements(float* p, float* m, float* v, const float* grad, int64_t n,
                    const AdamWRates& rates, float lr, float decay);
/// In double, in a fixed order.
double sum_of_squares(const float* x, int64_t n);

/// AdamW with bias correction and decoupled decay; f32 moments, f32 arithmetic, bias corrections
/// and norm in double. With n = number of updates including this one:
///   g = grad * s,  s = 1 / (norm + 1e-6) * clip  if (norm + 1e-6) / clip > 1, else 1
///   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
///   p -= lr lr_scale ((m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps) + decay p)
/// A parameter whose gradients have all been exactly zero moves by its decay only. Parameters that
/// the loss does not reach are left alone altogether. Results do not depend on the number of
/// threads: memory is cut into pieces whose bounds depend on the shapes only, and the norm adds
/// their double partial sums in order.
/// source: Loshchilov and Hutter 2019, algorithm 2; clip rule and order of spec rwkv7 6.1
class AdamW {
 public:
  /// `trained` by ParamId (Plan::reached_params); empty: all. The registry must outlive this.
  AdamW(Device device, const ParamRegistry& params, const AdamWOptions& options,
        const std::vector<bool>& trained = {});

  /// 2-norm over all trained gradients; NaN or infinite if any of them is. Allocates nothing.
  double grad_norm(const ParamStore& grads);
  /// One update; `norm` is grad_norm(grads). Throws NonFiniteError if it is not finite.
  void step(ParamStore& values, const ParamStore& grads, double lr, double norm);

  int64_t updates() const { return updates_; }
  void set_updates(int64_t n) { updates_ = n; }  ///< after loading the moments
  ParamStore& m() { return m_; }
  ParamStore& v() { return v_; }

 private:
  /// A piece of one parameter in the flat buffers.
  struct Piece {
    int64_t begin, end;
    float lr_scale, decay;
  };
  AdamWOptions options_;
  std::vector<Piece> pieces_;
  std::vector<double> partial_;  ///< one per piece
  ParamStore m_, v_;
  int64_t updates_ = 0;
};

}  // namespace rwkv
