#include "inference/decode_weights.h"

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/core/bf16.h"
#include "kernels/core/error.h"
#include "kernels/core/half.h"
#include "kernels/core/parallel.h"

namespace rwkv {
namespace {

using decode::Layout;

constexpr int64_t kRowsPerTask = 16;

const float* tensor(const Model& model, const ParamStore& weights, const std::string& name) {
  const auto id = model.params().find(name);
  RWKV_ASSERT(id.has_value(), "no parameter ", name);
  return weights[*id].f32();
}

/// Rounded values, written one by one at byte offsets.
class Packer {
 public:
  Packer(DType dtype, size_t bytes) : dtype_(dtype), bytes_(bytes) {}
  void put(size_t offset, float x) {
    std::byte* const to = bytes_.data() + offset;
    if (dtype_ == DType::kF32) {
      std::memcpy(to, &x, 4);
    } else if (dtype_ == DType::kF16) {
      const F16 y = to_half(x);
      std::memcpy(to, &y, 2);
    } else {
      const BF16 y = to_bf16(x);
      std::memcpy(to, &y, 2);
    }
  }
  void clear() { std::ranges::fill(bytes_, std::byte{0}); }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  DType dtype_;
  std::vector<std::byte> bytes_;
};

/// One layer: all of its bytes.
void pack_layer(const Layout& l, int layer, const Model& model, const ParamStore& weights,
                Packer& out) {
  const std::string block = str("blocks.", layer, "."), att = block + "att.";
  const int64_t d = l.shape.width, f = l.shape.ffn;
  const auto element = static_cast<size_t>(l.element);
  out.clear();
  /// W (rows, columns) of a linear layer, at row `first` of the matrix at `at`.
  const auto rows = [&](const std::string& name, size_t at, int64_t first, int64_t n) {
    const float* const w = tensor(model, weights, name);
    parallel_for(n, kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * d; i < end * d; ++i)
        out.put(at + static_cast<size_t>(first * d + i) * element, w[i]);
    });
  };
  rows(att + "receptance.weight", l.in_at, 0, d);
  rows(att + "key.weight", l.in_at, d, d);
  rows(att + "value.weight", l.in_at, 2 * d, d);
  rows(att + "output.weight", l.out_at, 0, d);
  rows(block + "ffn.key.weight", l.key_at, 0, f);

  const char* const names[decode::kLowRanks] = {"w", "a", "v", "g"};
  for (int i = 0; i < decode::kLowRanks; ++i) {
    if (i == 2 && layer == 0) continue;  // the first layer mixes no value: zeros
    const int64_t rank = l.shape.rank[i];
    const float* const down = tensor(model, weights, att + names[i] + "1");
    const float* const up = tensor(model, weights, att + names[i] + "2");
    const size_t first = l.in_at + static_cast<size_t>(l.section[3 + i] * d) * element;
    for (int64_t r = 0; r < rank; ++r)
      for (int64_t c = 0; c < d; ++c) {
        out.put(first + static_cast<size_t>(r * d + c) * element, down[c * rank + r]);
        out.put(decode::lora_offset(l, i, static_cast<int>(r), static_cast<int>(c)), up[r * d + c]);
      }
  }
  const float* const value = tensor(model, weights, block + "ffn.value.weight");
  parallel_for(d, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      for (int64_t i = 0; i < f; ++i)
        out.put(decode::value_offset(l, static_cast<int>(i), static_cast<int>(c)),
                value[c * f + i]);
  });
}

}  // namespace

decode::Shape decode_shape(const ModelConfig& c) {
  RWKV_CHECK(c.architecture == "rwkv7" && c.head_size == decode::kHeadSize, ConfigError,
             "decoding kernels: found ", c.architecture, " with heads of ", c.head_size,
             ", expected rwkv7 with heads of ", decode::kHeadSize);
  decode::Shape s;
  s.layers = static_cast<int>(c.n_layer);
  s.width = static_cast<int>(c.n_embd);
  s.ffn = static_cast<int>(c.dim_ffn);
  s.vocab = static_cast<int>(c.vocab_size);
  const int64_t ranks[] = {c.rank_w, c.rank_a, c.rank_v, c.rank_g};
  for (int i = 0; i < decode::kLowRanks; ++i) s.rank[i] = static_cast<int>(ranks[i]);
  return s;
}

void pack_decode_weights(const Layout& l, DType dtype, const Model& model,
                         const ParamStore& weights, const PackSink& sink) {
  const int64_t d = l.shape.width, vocab = l.shape.vocab;
  const auto element = static_cast<size_t>(l.element);
  Packer layer(dtype, l.layer_bytes);
  for (int i = 0; i < l.shape.layers; ++i) {
    pack_layer(l, i, model, weights, layer);
    sink(static_cast<size_t>(i) * l.layer_bytes, layer.bytes());
  }
  Packer table(dtype, static_cast<size_t>(vocab * d) * element);
  const float* const head = tensor(model, weights, "head.weight");
  parallel_for(vocab, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * d; i < end * d; ++i)
      table.put(static_cast<size_t>(i) * element, head[i]);
  });
  sink(l.head_at, table.bytes());

  const float* const embedding = tensor(model, weights, "emb.weight");
  const float* const gain = tensor(model, weights, "blocks.0.ln0.weight");
  const float* const bias = tensor(model, weights, "blocks.0.ln0.bias");
  parallel_for(vocab, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* const x = embedding + row * d;
      double mean = 0, squares = 0;
      for (int64_t c = 0; c < d; ++c) mean += static_cast<double>(x[c]);
      mean /= static_cast<double>(d);
      for (int64_t c = 0; c < d; ++c) squares += std::pow(static_cast<double>(x[c]) - mean, 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(d) + 1e-5);
      for (int64_t c = 0; c < d; ++c)
        table.put(static_cast<size_t>(row * d + c) * element,
                  static_cast<float>((static_cast<double>(x[c]) - mean) * scale *
                                         static_cast<double>(gain[c]) +
                                     static_cast<double>(bias[c])));
    }
  });
  sink(l.embedding_at, table.bytes());
}

void pack_plain_weights(const Layout& l, const decode::PlainLayout& plain, DType dtype,
                        const Model& model, const ParamStore& weights, const PackSink& sink) {
  const int64_t d = l.shape.width, f = l.shape.ffn;
  const auto element = static_cast<size_t>(l.element);
  Packer layer(dtype, plain.layer_bytes);
  for (int n = 0; n < l.shape.layers; ++n) {
    const std::string block = str("blocks.", n, ".");
    layer.clear();
    const char* const names[decode::kLowRanks] = {"w2", "a2", "v2", "g2"};
    for (int i = 0; i < decode::kLowRanks; ++i) {
      if (i == 2 && n == 0) continue;
      const int64_t rank = l.shape.rank[i];
      const float* const up = tensor(model, weights, block + "att." + names[i]);
      for (int64_t r = 0; r < rank; ++r)
        for (int64_t c = 0; c < d; ++c)
          layer.put(plain.low_at[i] + static_cast<size_t>(c * rank + r) * element, up[r * d + c]);
    }
    const float* const value = tensor(model, weights, block + "ffn.value.weight");
    parallel_for(d, kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * f; i < end * f; ++i)
        layer.put(plain.value_at + static_cast<size_t>(i) * element, value[i]);
    });
    sink(static_cast<size_t>(n) * plain.layer_bytes, layer.bytes());
  }
}

std::vector<float> pack_decode_params(const Layout& l, const Model& model,
                                      const ParamStore& weights) {
  const char* const names[decode::kParams] = {
      "ln1.weight", "ln1.bias", "att.x_r",         "att.x_k",      "att.x_v",
      "att.x_w",    "att.x_a",  "att.x_g",         "ln2.weight",   "ln2.bias",
      "ffn.x_k",    "att.w0",   "att.a0",          "att.v0",       "att.k_k",
      "att.k_a",    "att.r_k",  "att.ln_x.weight", "att.ln_x.bias"};
  std::vector<float> all(l.params());
  const auto d = static_cast<size_t>(l.shape.width);
  const auto copy_to = [&](size_t index, const std::string& name) {
    std::memcpy(all.data() + index * d, tensor(model, weights, name), d * sizeof(float));
  };
  const auto layers = static_cast<size_t>(l.shape.layers);
  for (size_t i = 0; i < layers; ++i)
    for (size_t p = 0; p < decode::kParams; ++p)
      if (i > 0 || p != decode::kV0)
        copy_to(i * decode::kParams + p, str("blocks.", i, ".", names[p]));
  copy_to(layers * decode::kParams, "ln_out.weight");
  copy_to(layers * decode::kParams + 1, "ln_out.bias");
  return all;
}

std::vector<float> random_decode_params(const Layout& l, uint64_t seed) {
  const Rng rng(seed, hash_name("decode parameters"));
  std::vector<float> all(l.params());
  const auto d = static_cast<size_t>(l.shape.width);
  const auto layers = static_cast<size_t>(l.shape.layers);
  for (size_t i = 0; i < all.size(); ++i) {
    const size_t p = i / d < layers * decode::kParams ? i / d % decode::kParams : i / d % 2;
    const double z = rng.normal(i);
    double x = 0.1 * z;  // biases, r_k
    switch (p) {
      case decode::kLn1Weight:
      case decode::kLn2Weight:
      case decode::kLnXWeight:
      case decode::kKeyRate:
        x = 1 + 0.1 * z;
        break;
      case decode::kMixR:
      case decode::kMixK:
      case decode::kMixV:
      case decode::kMixW:
      case decode::kMixA:
      case decode::kMixG:
      case decode::kMixFfn:
        x = 1 / (1 + std::exp(-z));
        break;
      case decode::kW0:
        x = -2 + 1.5 * z;
        break;
      case decode::kKeyScale:
        x = 0.7 + 0.1 * z;
        break;
      default:
        break;
    }
    all[i] = static_cast<float>(x);
  }
  return all;
}

}  // namespace rwkv
