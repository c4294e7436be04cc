#include "trainer/optimizer.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/core/error.h"
#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

// 64 Ki elements: 256 KiB of each array, small enough to balance two or many threads, large enough
// to make the bookkeeping free.
constexpr int64_t kPieceElements = int64_t{1} << 16;

}  // namespace

double sum_of_squares(const float* x, int64_t n) {
  // Independent sums, so that the compiler may use wide registers without reordering anything.
  std::array<double, 16> lane{};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (size_t k = 0; k < 16; ++k) {
      const double y = x[i + static_cast<int64_t>(k)];
      lane[k] += y * y;
    }
  for (; i < n; ++i) lane[0] += static_cast<double>(x[i]) * x[i];
  double sum = 0;
  for (const double s : lane) sum += s;
  return sum;
}

void adamw_elements(float* __restrict p, float* __restrict m, float* __restrict v,
                    const float* __restrict grad, int64_t n, const AdamWRates& r, float lr,
                    float decay) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * r.scale;
    const float mi = r.beta1 * m[i] + r.one_minus_beta1 * g;
    const float vi = r.beta2 * v[i] + r.one_minus_beta2 * g * g;
    m[i] = mi;
    v[i] = vi;
    const float direction = (mi * r.correction1) / (std::sqrt(vi * r.correction2) + r.eps);
    p[i] -= lr * (direction + decay * p[i]);
  }
}

AdamWRates adamw_rates(const AdamWOptions& options, int64_t updates, double norm) {
  const auto n = static_cast<double>(updates);
  AdamWRates rates{
      .beta1 = static_cast<float>(options.beta1),
      .beta2 = static_cast<float>(options.beta2),
      .one_minus_beta1 = static_cast<float>(1 - options.beta1),
      .one_minus_beta2 = static_cast<float>(1 - options.beta2),
      .correction1 = static_cast<float>(1 / (1 - std::pow(options.beta1, n))),
      .correction2 = static_cast<float>(1 / (1 - std::pow(options.beta2, n))),
      .eps = static_cast<float>(options.eps),
      .scale = 1,
  };
  if (options.clip > 0 && (norm + 1e-6) / options.clip > 1)
    rates.scale = static_cast<float>(options.clip / (norm + 1e-6));
  return rates;
}

AdamW::AdamW(Device device, const ParamRegistry& params, const AdamWOptions& options,
             const std::vector<bool>& trained)
    : options_(options), m_(device, params, "first moments"), v_(device, params, "second moments") {
  RWKV_CHECK(device == Device::kCpu, DeviceError, "making the optimizer: this build has no ",
             device_name(device), " kernels for it");
  for (size_t i = 0; i < params.size(); ++i) {
    if (!trained.empty() && !trained[i]) continue;
    const ParamSpec& spec = params.specs()[i];
    const int64_t begin = params.offset(static_cast<ParamId>(i));
    const int64_t end = begin + spec.spec.numel();
    const float decay = spec.weight_decay ? static_cast<float>(options.weight_decay) : 0.0f;
    for (int64_t b = begin; b < end; b += kPieceElements)
      pieces_.push_back({b, std::min(end, b + kPieceElements), spec.lr_scale, decay});
  }
  partial_.assign(pieces_.size(), 0.0);
}

double AdamW::grad_norm(const ParamStore& grads) {
  const float* g = grads.flat().data();
  parallel_for(static_cast<int64_t>(pieces_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const auto i = static_cast<size_t>(k);
      partial_[i] = sum_of_squares(g + pieces_[i].begin, pieces_[i].end - pieces_[i].begin);
    }
  });
  double sum = 0;
  for (const double s : partial_) sum += s;
  return std::sqrt(sum);
}

void AdamW::step(ParamStore& values, const ParamStore& grads, double lr, double norm) {
  RWKV_CHECK(std::isfinite(norm), NonFiniteError, "updating the parameters: the gradient norm is ",
             norm, "; skip this step");
  ++updates_;
  const AdamWRates rates = adamw_rates(options_, updates_, norm);
  float *p = values.flat().data(), *m = m_.flat().data(), *v = v_.flat().data();
  const float* g = grads.flat().data();
  parallel_for(static_cast<int64_t>(pieces_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Piece& piece = pieces_[static_cast<size_t>(k)];
      const int64_t o = piece.begin;
      adamw_elements(p + o, m + o, v + o, g + o, piece.end - o, rates,
                     static_cast<float>(lr * piece.lr_scale), piece.decay);
    }
  });
}

}  // namespace rwkv
