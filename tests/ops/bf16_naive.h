#pragma once
/// What a plain bf16 computation of an op would give, as a yardstick of the bf16 kernels: the
/// double reference with every intermediate tensor that such a computation stores rounded to bf16.
/// The caller rounds the results.

#include "kernels/core/bf16.h"
#include "kernels/ref/reference.h"

namespace rwkv::test {

inline double round_bf16(double x) {
  return static_cast<double>(to_float(to_bf16(static_cast<float>(x))));
}

/// Forward and backward of c, all of out, din and dparam. The low-rank op and the feed-forward one
/// store their hidden values and their gradients, the head its logits and theirs; all other ops
/// store nothing in between.
inline void naive_low_rank(ref::RefCall<double>& c) {
  const Activation inner = c.attr<LowRankAttrs>().inner;
  const int64_t K = c.param_spec[0][0], R = c.param_spec[0][1], N = c.param_spec[1][1];
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r) {
    for (int64_t n = 0; n < N; ++n) {
      c.out[0][ref::at(r, n, N)] = c.param.size() == 3 ? c.param[2][static_cast<size_t>(n)] : 0;
      if (c.param.size() == 3) c.dparam[2][static_cast<size_t>(n)] += c.dout[0][ref::at(r, n, N)];
    }
    for (int64_t q = 0; q < R; ++q) {
      const double pre = round_bf16(ref::low_rank_hidden(c, r, q));
      const double h = round_bf16(ref::activated(inner, pre).value);
      double dh = 0;
      for (int64_t n = 0; n < N; ++n) {
        const double dy = c.dout[0][ref::at(r, n, N)];
        c.out[0][ref::at(r, n, N)] += h * c.param[1][ref::at(q, n, N)];
        dh += dy * c.param[1][ref::at(q, n, N)];
        c.dparam[1][ref::at(q, n, N)] += h * dy;
      }
      const double slope = inner == Activation::kTanh      ? 1 - h * h
                           : inner == Activation::kSigmoid ? h * (1 - h)
                                                           : 1.0;
      const double dpre = round_bf16(round_bf16(dh) * slope);
      for (int64_t k = 0; k < K; ++k) {
        c.din[0][ref::at(r, k, K)] += dpre * c.param[0][ref::at(k, q, R)];
        c.dparam[0][ref::at(k, q, R)] += c.in[0][ref::at(r, k, K)] * dpre;
      }
    }
  }
}

inline void naive_feed_forward(ref::RefCall<double>& c) {
  const int64_t K = c.param_spec[0][1], H = c.param_spec[0][0], N = c.param_spec[1][0];
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r) {
    for (int64_t n = 0; n < N; ++n) {
      const double dy = c.dout[0][ref::at(r, n, N)];
      c.out[0][ref::at(r, n, N)] = c.in.size() == 2 ? c.in[1][ref::at(r, n, N)] : 0;
      if (c.in.size() == 2) c.din[1][ref::at(r, n, N)] += dy;
    }
    for (int64_t h = 0; h < H; ++h) {
      const double p = round_bf16(ref::feed_forward_relu(c, r, h)), y = round_bf16(p * p);
      double dh = 0;
      for (int64_t n = 0; n < N; ++n) {
        const double dy = c.dout[0][ref::at(r, n, N)];
        c.out[0][ref::at(r, n, N)] += y * c.param[1][ref::at(n, h, H)];
        dh += dy * c.param[1][ref::at(n, h, H)];
        c.dparam[1][ref::at(n, h, H)] += y * dy;
      }
      const double dp = round_bf16(round_bf16(dh) * 2 * p);
      for (int64_t k = 0; k < K; ++k) {
        c.din[0][ref::at(r, k, K)] += dp * c.param[0][ref::at(h, k, K)];
        c.dparam[0][ref::at(h, k, K)] += c.in[0][ref::at(r, k, K)] * dp;
      }
    }
  }
}

inline void naive_head(ref::RefCall<double>& c) {
  const int64_t rows = c.in_spec[0].rows(), V = c.param_spec[0][0], C = c.param_spec[0][1];
  const auto tokens = static_cast<double>(rows);
  const bool l2wrap = c.attr<LinearCrossEntropyAttrs>().l2wrap;
  c.out[0][0] = 0;
  for (int64_t r = 0; r < rows; ++r) {
    auto l = ref::token_logits(c, r);
    double sum = 0, most = -1e300;
    size_t top = 0;
    for (size_t n = 0; n < l.value.size(); ++n) {
      l.value[n] = round_bf16(l.value[n]);
      if (l.value[n] > most) most = l.value[n], top = n;
    }
    for (const double x : l.value) sum += std::exp(x - most);
    const auto target = static_cast<size_t>(c.ids[1][static_cast<size_t>(r)]);
    c.out[1][static_cast<size_t>(r)] = std::log(sum) + most - l.value[target];
    c.out[0][0] += c.out[1][static_cast<size_t>(r)] / tokens;
    for (int64_t n = 0; n < V; ++n) {
      const auto u = static_cast<size_t>(n);
      double d = std::exp(l.value[u] - most) / sum;
      if (u == target) d -= 1;
      if (l2wrap && u == top) d += 1e-4 * most;
      d = round_bf16(d / tokens) * c.dout[0][0];
      for (int64_t k = 0; k < C; ++k) {
        c.din[0][ref::at(r, k, C)] += d * c.param[0][ref::at(n, k, C)];
        c.dparam[0][ref::at(n, k, C)] += d * c.in[0][ref::at(r, k, C)];
      }
    }
  }
}

inline void naive(std::string_view op, ref::RefCall<double>& c) {
  if (op == "low_rank") return naive_low_rank(c);
  if (op == "feed_forward") return naive_feed_forward(c);
  if (op == "linear_cross_entropy") return naive_head(c);
  ref::reference_of<double>(op).forward(c);
  ref::reference_of<double>(op).backward(c);
}

}  // namespace rwkv::test
