#pragma once
/// Reading the reference files described in tests/golden/README.md.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "data/io/hdf5_file.h"
#include "kernels/core/bf16.h"
#include "kernels/core/memory.h"
#include "kernels/wkv/wkv.h"
#include "model/rwkv.h"
#include "tests/support/device.h"

namespace rwkv::golden {

/// Folder of the files: RWKV_GOLDEN_DIR, else the copies beside the tests.
inline std::string path(const std::string& file) {
  const char* dir = std::getenv("RWKV_GOLDEN_DIR");
  return std::string(dir != nullptr && *dir != '\0' ? dir : RWKV_SOURCE_DIR "/tests/golden") + "/" +
         file;
}

inline int64_t scalar(const Hdf5File& file, const std::string& name) {
  return file.read_scalar<int64_t>(name);
}

#ifdef RWKV_TEST_ARCHITECTURE  // tests/golden.cmake
/// The file of that kind ("tiny", "train") for the architecture that the program was made for.
inline std::string model_file(const std::string& kind) {
  return path(RWKV_TEST_ARCHITECTURE "_" + kind + ".h5");
}
#endif

/// 2-norm of the difference over the 2-norm of the reference; 0/0 counts as 0, NaN stays NaN.
template <class A, class B>
double rel(const A& reference, const B& got) {
  if (reference.size() != got.size()) return std::nan("");
  double diff = 0, norm = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double r = static_cast<double>(reference[i]), g = static_cast<double>(got[i]);
    diff += (g - r) * (g - r);
    norm += r * r;
  }
  if (diff == 0) return 0;
  return std::sqrt(diff) / std::sqrt(norm);
}

/// A tensor of f32 or bf16 on any device, as floats.
inline std::vector<float> fetch(Context& ctx, const TensorView& v) {
  std::vector<float> out(static_cast<size_t>(v.numel()));
  if (v.spec.dtype == DType::kBF16) {
    std::vector<BF16> half(out.size());
    copy(ctx, TensorView(half.data(), v.spec), v);
    std::ranges::transform(half, out.begin(), [](BF16 x) { return to_float(x); });
  } else {
    RWKV_CHECK(v.spec.dtype == DType::kF32, DTypeError, to_string(v.spec));
    copy(ctx, TensorView(out.data(), v.spec), v);
  }
  return out;
}

/// The other way, rounding to the tensor's type.
inline void put(Context& ctx, const TensorView& to, std::span<const float> values) {
  ASSERT_EQ(static_cast<size_t>(to.numel()), values.size());
  std::vector<float> all(values.begin(), values.end());
  std::vector<BF16> half;
  for (const float x : values) half.push_back(to_bf16(x));
  const bool wide = to.spec.dtype == DType::kF32;
  copy(ctx, to, TensorView(wide ? static_cast<void*>(all.data()) : half.data(), to.spec));
  ctx.synchronize("test");
}
inline void put(Context& ctx, const TensorView& to, std::span<const int32_t> ids) {
  ASSERT_EQ(static_cast<size_t>(to.numel()), ids.size());
  std::vector<int32_t> all(ids.begin(), ids.end());
  copy(ctx, to, TensorView(all.data(), to.spec));
  ctx.synchronize("test");
}

/// A type of activations with a WKV variant of the device under test.
struct Setup {
  DType dtype;
  std::string wkv;  ///< full name, which ends with the type
  std::string name() const {
    std::string n = wkv;
    std::ranges::replace(n, '.', '_');
    return n;
  }
};

/// Every type and variant with an f32 state that fits the model (all must be fit for one file or
/// another), but not cumsum-naive, which refuses the decays of these models.
inline std::vector<Setup> setups(const ModelConfig& c, int64_t batch, int64_t tokens,
                                 bool state = false) {
  const bool v4 = c.architecture == "rwkv4";
  const std::string op = v4 ? "wkv4" : "wkv7";
  const WkvShape shape{batch, tokens, v4 ? c.n_embd : c.n_head(), v4 ? 1 : c.head_size, state};
  std::vector<Setup> found;
  for (const WkvKernel* k : all_wkv_kernels()) {
    if (k->op != op || k->device != test::kTestDevice || k->state != DType::kF32) continue;
    if (k->family == "cumsum-naive") continue;
    try {
      select_wkv(op, k->device, k->io, shape, k->name);
      found.push_back({k->io, std::string(k->name)});
    } catch (const ConfigError&) {
      // Does not fit this shape (a multiple of T, say); the other files cover it.
    }
  }
  return found;
}

inline std::span<const float> elements(const TensorView& v) {
  return {v.f32(), static_cast<size_t>(v.numel())};
}

/// The signed row and column sums of a matrix, as the README defines them.
inline std::vector<double> project(std::span<const float> m, int64_t rows, int64_t cols,
                                   const std::vector<int8_t>& sign) {
  std::vector<double> out(static_cast<size_t>(rows + cols), 0.0);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const double x = m[static_cast<size_t>(i * cols + j)];
      out[static_cast<size_t>(i)] += x * sign[static_cast<size_t>(j)];
      out[static_cast<size_t>(rows + j)] += x * sign[static_cast<size_t>(i)];
    }
  return out;
}

/// Sizes from config/ of a model file.
inline ModelConfig model_config(const Hdf5File& file) {
  ModelConfig c;
  c.architecture = str("rwkv", scalar(file, "config/version"));
  c.n_layer = scalar(file, "config/L");
  c.n_embd = scalar(file, "config/D");
  c.vocab_size = scalar(file, "config/V");
  c.dim_ffn = scalar(file, "config/F");
  if (c.architecture == "rwkv7") {
    c.head_size = scalar(file, "config/N");
    c.rank_w = scalar(file, "config/Rw");
    c.rank_a = scalar(file, "config/Ra");
    c.rank_v = scalar(file, "config/Rv");
    c.rank_g = scalar(file, "config/Rg");
  }
  c.finish();
  return c;
}

/// Fills a store from the datasets group/NAME; every tensor of the model must be there, and
/// nothing else.
inline void load_params(const Hdf5File& file, const std::string& group, const Model& model,
                        ParamStore& store) {
  const auto& params = model.params();
  ASSERT_EQ(file.list_datasets(group).size(), params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const TensorView v = store[static_cast<ParamId>(i)];
    const std::string name = group + "/" + params.specs()[i].name;
    const Shape shape(v.spec.dim.begin(), v.spec.dim.begin() + v.spec.rank);
    file.read_into<float>(name, shape, {v.f32(), static_cast<size_t>(v.numel())});
  }
}

}  // namespace rwkv::golden
