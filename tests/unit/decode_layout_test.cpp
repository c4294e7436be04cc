// The packed weights of the decoding kernels: what the kernels compute from them, done here by the
// same functions of layout.h in plain loops, against the engine on the CPU.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "inference/decode_weights.h"
#include "inference/engine.h"
#include "kernels/core/error.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using decode::Layout;
using test::random_ids;
using test::random_model;
using test::TestModel;

using Vector = std::vector<double>;

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

struct Packed {
  Layout l;
  decode::PlainLayout plain;
  std::vector<std::byte> weights, plain_weights;
  std::vector<float> params;

  Packed(const TestModel& m, int blocks, int splits, int slice)
      : l(decode::make_layout(decode_shape(m.model->config()), DType::kF32, blocks, splits, slice)),
        plain(decode::make_plain_layout(l)),
        weights(l.bytes),
        plain_weights(plain.bytes),
        params(pack_decode_params(l, *m.model, *m.weights)) {
    const auto into = [](std::vector<std::byte>& to) {
      return [&to](size_t offset, std::span<const std::byte> bytes) {
        ASSERT_LE(offset + bytes.size(), to.size());
        std::memcpy(to.data() + offset, bytes.data(), bytes.size());
      };
    };
    pack_decode_weights(l, DType::kF32, *m.model, *m.weights, into(weights));
    pack_plain_weights(l, plain, DType::kF32, *m.model, *m.weights, into(plain_weights));
  }
  double at(size_t offset) const {
    float x = 0;
    std::memcpy(&x, weights.data() + offset, sizeof x);
    return static_cast<double>(x);
  }
  double plain_at(size_t offset) const {
    float x = 0;
    std::memcpy(&x, plain_weights.data() + offset, sizeof x);
    return static_cast<double>(x);
  }
};

/// One sequence, token by token, from the packed bytes.
class Emulation {
 public:
  explicit Emulation(const Packed& p)
      : p_(p),
        d_(static_cast<size_t>(p.l.shape.width)),
        shift_(static_cast<size_t>(2 * p.l.shape.layers), Vector(d_)),
        state_(static_cast<size_t>(p.l.shape.layers), Vector(d_ * decode::kHeadSize)) {}

  Vector step(int token) {
    const Layout& l = p_.l;
    Vector x = row(l.embedding_at, token), v_first;
    for (int n = 0; n < l.shape.layers; ++n) {
      const auto index = static_cast<size_t>(n);
      const size_t base = index * l.layer_bytes;
      const size_t first = index * decode::kParams;
      const Vector h = norm(x, first + decode::kLn1Weight);
      Vector products;
      constexpr decode::Param kMix[] = {decode::kMixR, decode::kMixK, decode::kMixV, decode::kMixW,
                                        decode::kMixA, decode::kMixV, decode::kMixG};
      for (size_t s = 0; s < decode::kSections; ++s) {
        const Vector in = mixed(h, shift_[2 * index], first + static_cast<size_t>(kMix[s]));
        for (int i = l.section[s]; i < l.section[s + 1]; ++i)
          products.push_back(dot(row(base + l.in_at, i), in));
      }
      shift_[2 * index] = h;
      const Vector gated = heads(n, base, first, products, v_first);
      for (size_t c = 0; c < d_; ++c) x[c] += dot(row(base + l.out_at, static_cast<int>(c)), gated);
      const Vector g = norm(x, first + decode::kLn2Weight);
      const Vector in = mixed(g, shift_[2 * index + 1], first + decode::kMixFfn);
      shift_[2 * index + 1] = g;
      for (int f = 0; f < l.shape.ffn; ++f) {
        const double p = std::max(dot(row(base + l.key_at, f), in), 0.0);
        for (int c = 0; c < l.shape.width; ++c)
          x[static_cast<size_t>(c)] += p * p * p_.at(base + decode::value_offset(l, f, c));
      }
    }
    const Vector h = norm(x, static_cast<size_t>(l.shape.layers) * decode::kParams);
    Vector logits;
    for (int i = 0; i < l.shape.vocab; ++i) logits.push_back(dot(row(l.head_at, i), h));
    return logits;
  }

 private:
  double param(size_t vector, size_t c) const {
    return static_cast<double>(p_.params[vector * d_ + c]);
  }
  Vector row(size_t matrix, int i) const {
    Vector x(d_);
    for (size_t c = 0; c < d_; ++c) x[c] = p_.at(matrix + (static_cast<size_t>(i) * d_ + c) * 4);
    return x;
  }
  static double dot(const Vector& a, const Vector& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
  Vector norm(const Vector& x, size_t weight) const {
    double mean = 0, squares = 0;
    for (const double v : x) mean += v / static_cast<double>(d_);
    for (const double v : x) squares += (v - mean) * (v - mean) / static_cast<double>(d_);
    Vector y(d_);
    for (size_t c = 0; c < d_; ++c)
      y[c] = (x[c] - mean) / std::sqrt(squares + 1e-5) * param(weight, c) + param(weight + 1, c);
    return y;
  }
  Vector mixed(const Vector& h, const Vector& before, size_t mix) const {
    Vector y(d_);
    for (size_t c = 0; c < d_; ++c) y[c] = h[c] + (before[c] - h[c]) * param(mix, c);
    return y;
  }
  Vector heads(int layer, size_t base, size_t first, const Vector& products, Vector& v_first) {
    const Layout& l = p_.l;
    const auto vec = [&](decode::Param p, size_t c) {
      return param(first + static_cast<size_t>(p), c);
    };
    Vector low[decode::kLowRanks];
    for (int i = 0; i < decode::kLowRanks; ++i)
      for (size_t c = 0; c < d_; ++c) {
        double sum = 0;
        for (int r = 0; r < l.shape.rank[i]; ++r) {
          const double m = products[static_cast<size_t>(l.section[3 + i] + r)];
          sum += (i == 0   ? std::tanh(m)
                  : i == 3 ? sigmoid(m)
                           : m) *
                 p_.at(base + decode::lora_offset(l, i, r, static_cast<int>(c)));
        }
        low[i].push_back(sum);
      }
    Vector v(products.begin() + static_cast<int64_t>(2 * d_),
             products.begin() + static_cast<int64_t>(3 * d_)),
        gated(d_);
    if (layer == 0) v_first = v;
    for (size_t c = 0; c < d_ && layer > 0; ++c)
      v[c] += (v_first[c] - v[c]) * sigmoid(vec(decode::kV0, c) + low[2][c]);
    constexpr size_t n = decode::kHeadSize;
    for (size_t head = 0; head < d_; head += n) {
      double length = 0, beta = 0;
      Vector r(n), w(n), k(n), a(n), b(n), y(n);
      for (size_t i = 0; i < n; ++i) {
        const size_t c = head + i;
        const double k0 = products[d_ + c], rate = sigmoid(vec(decode::kA0, c) + low[1][c]);
        r[i] = products[c];
        a[i] = -k0 * vec(decode::kKeyScale, c);
        length += a[i] * a[i];
        k[i] = k0 * (1 + (rate - 1) * vec(decode::kKeyRate, c));
        b[i] = rate;
        w[i] = std::exp(-0.6065306597126334 * sigmoid(vec(decode::kW0, c) + low[0][c]));
        beta += r[i] * k[i] * vec(decode::kBonus, c);
      }
      for (size_t i = 0; i < n; ++i) {
        a[i] /= std::max(std::sqrt(length), 1e-12);
        b[i] *= -a[i];
      }
      double mean = 0, squares = 0;
      for (size_t i = 0; i < n; ++i) {
        double* const s = state_[static_cast<size_t>(layer)].data() + (head + i) * n;
        double u = 0;
        for (size_t j = 0; j < n; ++j) u += s[j] * a[j];
        for (size_t j = 0; j < n; ++j) {
          s[j] = s[j] * w[j] + u * b[j] + v[head + i] * k[j];
          y[i] += s[j] * r[j];
        }
        mean += y[i] / static_cast<double>(n);
      }
      for (const double q : y) squares += (q - mean) * (q - mean) / static_cast<double>(n);
      for (size_t i = 0; i < n; ++i) {
        const size_t c = head + i;
        gated[c] = ((y[i] - mean) / std::sqrt(squares + 64e-5) * vec(decode::kLnXWeight, c) +
                    vec(decode::kLnXBias, c) + beta * v[c]) *
                   low[3][c];
      }
    }
    return gated;
  }

  const Packed& p_;
  size_t d_;
  std::vector<Vector> shift_, state_;
};

TEST(DecodeLayout, PackedWeightsAreTheModel) {
  const TestModel m = random_model(1);
  for (const auto& [blocks, splits, slice] :
       {std::tuple{132, 0, 0}, std::tuple{7, 1, 32}, std::tuple{64, 4, 64}}) {
    const Packed packed(m, blocks, splits, slice);
    Emulation emulation(packed);
    Engine engine(*m.model, *m.weights);
    RnnState state = engine.new_state();
    double worst = 0;
    for (const int32_t id : random_ids(2, 6, 300)) {
      const Vector got = emulation.step(id);
      const TensorView want = engine.decode(state, {&id, 1});
      for (size_t i = 0; i < got.size(); ++i) {
        const double e = std::fabs(got[i] - static_cast<double>(want.f32()[i]));
        // A NaN stays: nothing is larger.
        if (!(e <= worst) && !std::isnan(worst)) worst = e;
      }
    }
    EXPECT_LE(worst, 1e-4) << blocks;
  }
}

TEST(DecodeLayout, PlainCopiesHoldTheSame) {
  const TestModel m = random_model(2);
  const Packed p(m, 132, 0, 0);
  const Layout& l = p.l;
  for (int layer = 0; layer < l.shape.layers; ++layer) {
    const size_t base = static_cast<size_t>(layer) * l.layer_bytes,
                 other = static_cast<size_t>(layer) * p.plain.layer_bytes;
    for (int c = 0; c < l.shape.width; ++c) {
      for (int f = 0; f < l.shape.ffn; ++f)
        ASSERT_EQ(
            p.at(base + decode::value_offset(l, f, c)),
            p.plain_at(other + p.plain.value_at + static_cast<size_t>(c * l.shape.ffn + f) * 4));
      for (int i = 0; i < decode::kLowRanks; ++i)
        for (int r = 0; r < l.shape.rank[i]; ++r)
          ASSERT_EQ(p.at(base + decode::lora_offset(l, i, r, c)),
                    p.plain_at(other + p.plain.low_at[i] +
                               static_cast<size_t>(c * l.shape.rank[i] + r) * 4));
    }
  }
}

TEST(DecodeLayout, EveryBlockHasRowsAndRowsHaveOneBlock) {
  for (const int rows : {64, 768, 2592, 13120, 65536})
    for (const int blocks : {1, 7, 32, 64}) {
      EXPECT_EQ(decode::first_row(rows, 0, blocks), 0);
      EXPECT_EQ(decode::first_row(rows, blocks, blocks), rows);
      for (int b = 0; b < blocks; ++b)
        EXPECT_LT(decode::first_row(rows, b, blocks), decode::first_row(rows, b + 1, blocks));
    }
}

TEST(DecodeLayout, RefusesWhatKernelsCannotDo) {
  decode::Shape s{.layers = 2, .width = 128, .ffn = 512, .vocab = 300, .rank = {32, 32, 32, 64}};
  EXPECT_NO_THROW(decode::make_layout(s, DType::kF16, 132));
  EXPECT_THROW(decode::make_layout(s, DType::kF16, 132, 3), ConfigError);      // 512 / 3
  EXPECT_THROW(decode::make_layout(s, DType::kF16, 132, 2, 12), ConfigError);  // no whole packs
  s.width = 100;
  EXPECT_THROW(decode::make_layout(s, DType::kF16, 132), ConfigError);
  s.width = 8192;
  EXPECT_THROW(decode::make_layout(s, DType::kF16, 132), ConfigError);
  s.width = 128;
  s.rank[2] = 12;
  EXPECT_NO_THROW(decode::make_layout(s, DType::kF16, 132));
  EXPECT_THROW(decode::make_plain_layout(decode::make_layout(s, DType::kF16, 132)), ConfigError);
  EXPECT_THROW(decode_shape(test::random_rwkv4(1).model->config()), ConfigError);
}

}  // namespace
}  // namespace rwkv
