#pragma once
/// Reading the reference files described in tests/golden/README.md.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "data/io/hdf5_file.h"
#include "model/rwkv.h"

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
  c.n_layer = scalar(file, "config/L");
  c.n_embd = scalar(file, "config/D");
  c.vocab_size = scalar(file, "config/V");
  c.head_size = scalar(file, "config/N");
  c.dim_ffn = scalar(file, "config/F");
  c.rank_w = scalar(file, "config/Rw");
  c.rank_a = scalar(file, "config/Ra");
  c.rank_v = scalar(file, "config/Rv");
  c.rank_g = scalar(file, "config/Rg");
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
