#pragma once
/// Reference of kLinearCrossEntropy. source: spec rwkv7 2.6, 3.1

#include "kernels/ops/linear_cross_entropy.h"
#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

/// One token's logits, with the largest (lowest index on ties) and the log of the softmax sum.
template <class S>
struct TokenLogits {
  std::vector<S> value;
  size_t argmax = 0;
  S logsumexp{};
};
template <class S>
TokenLogits<S> token_logits(const RefCall<S>& c, int64_t row) {
  const int64_t V = c.param_spec[0][0], C = c.param_spec[0][1];
  TokenLogits<S> l;
  for (int64_t n = 0; n < V; ++n) {
    S sum{};
    for (int64_t k = 0; k < C; ++k) sum += c.in[0][at(row, k, C)] * c.param[0][at(n, k, C)];
    l.value.push_back(sum);
    if (real_part(sum) > real_part(l.value[l.argmax])) l.argmax = static_cast<size_t>(n);
  }
  S sum{};
  for (const S& v : l.value) sum += std::exp(v - l.value[l.argmax]);
  l.logsumexp = l.value[l.argmax] + std::log(sum);
  return l;
}

template <class S>
void linear_cross_entropy_forward(RefCall<S>& c) {
  const int64_t rows = c.in_spec[0].rows();
  c.out[0][0] = S{};
  for (int64_t r = 0; r < rows; ++r) {
    const TokenLogits<S> l = token_logits(c, r);
    const auto u = static_cast<size_t>(r);
    c.out[1][u] = l.logsumexp - l.value[static_cast<size_t>(c.ids[1][u])];
    c.out[0][0] += c.out[1][u] / static_cast<double>(rows);
  }
}

/// The function whose gradient is L2Wrap's term: 1e-4 / 2 * sum of m^2 / tokens.
template <class S>
S l2wrap_potential(const RefCall<S>& c) {
  const int64_t rows = c.in_spec[0].rows();
  S sum{};
  for (int64_t r = 0; r < rows; ++r) {
    const TokenLogits<S> l = token_logits(c, r);
    sum += 0.5e-4 * l.value[l.argmax] * l.value[l.argmax] / static_cast<double>(rows);
  }
  return sum;
}

template <class S>
void linear_cross_entropy_backward(RefCall<S>& c) {
  const int64_t rows = c.in_spec[0].rows(), V = c.param_spec[0][0], C = c.param_spec[0][1];
  const bool l2wrap = c.template attr<LinearCrossEntropyAttrs>().l2wrap;
  for (int64_t r = 0; r < rows; ++r) {
    const TokenLogits<S> l = token_logits(c, r);
    for (int64_t n = 0; n < V; ++n) {
      const auto u = static_cast<size_t>(n);
      S d = std::exp(l.value[u] - l.logsumexp);
      if (n == c.ids[1][static_cast<size_t>(r)]) d -= 1.0;
      if (l2wrap && u == l.argmax) d += 1e-4 * l.value[u];
      d *= c.dout[0][0] / static_cast<double>(rows);
      for (int64_t k = 0; k < C; ++k) {
        c.din[0][at(r, k, C)] += d * c.param[0][at(n, k, C)];
        c.dparam[0][at(n, k, C)] += d * c.in[0][at(r, k, C)];
      }
    }
  }
}

}  // namespace rwkv::ref
