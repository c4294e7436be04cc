#include "model/init.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "kernels/cpu/orthonormal.h"

namespace rwkv {
namespace {

// Costs per element in operations of matrix products, of which a core does some 40 in a nanosecond.
constexpr double kNormalCost = 1400, kUniformCost = 400, kFillCost = 800, kStoreCost = 10;

bool is_tall(int64_t n, int64_t m) {
  // Random ones are well conditioned: below 6.
  return n >= 2 * m;
}

double orthogonal_cost(int64_t rows, int64_t cols) {
  const auto n = static_cast<double>(std::max(rows, cols));
  const auto m = static_cast<double>(std::min(rows, cols));
  const double products = is_tall(std::max(rows, cols), std::min(rows, cols))
                              ? 2 * n * m * m + m * m * m / 3
                              : 4 * m * m * (n - m / 3);
  return products + kNormalCost * n * m;
}

/// Indices of the tensors, the most expensive first.
std::vector<size_t> by_cost(std::span<const InitTensor> tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::greater<>{}, [&](size_t i) { return tensors[i].cost; });
  return order;
}

/// How many of the most expensive tensors are worked on by all threads, one after the other.
size_t done_alone(std::span<const InitTensor> tensors, std::span<const size_t> order) {
  double total = 0;
  for (const InitTensor& t : tensors) total += t.cost;
  size_t n = 0;
  while (n < order.size() && tensors[order[n]].cost * 2 * num_threads() > total) ++n;
  return n;
}

}  // namespace

size_t fill_bytes(std::span<const InitTensor> tensors, const ParamRegistry& params) {
  const std::vector<size_t> order = by_cost(tensors);
  const size_t alone = done_alone(tensors, order);
  size_t values = 0, most = 0;
  std::vector<size_t> beside;
  for (size_t i = 0; i < order.size(); ++i) {
    const InitTensor& t = tensors[order[i]];
    values += static_cast<size_t>(params[t.id].spec.numel()) * sizeof(float);
    if (i < alone)
      most = std::max(most, t.workspace);
    else
      beside.push_back(t.workspace);
  }
  const size_t threads = std::min(beside.size(), static_cast<size_t>(num_threads()));
  std::ranges::partial_sort(beside, beside.begin() + static_cast<std::ptrdiff_t>(threads),
                            std::greater<>{});
  return values +
         std::max(most, std::accumulate(beside.begin(),
                                        beside.begin() + static_cast<std::ptrdiff_t>(threads),
                                        size_t{0}));
}

void fill_tensors(std::span<const InitTensor> tensors, const ParamStore& values) {
  const auto run = [&](const InitTensor& t) {
    const TensorView v = values[t.id];
    t.fill({v.f32(), static_cast<size_t>(v.numel())});
  };
  const std::vector<size_t> order = by_cost(tensors);
  const size_t first = done_alone(tensors, order);
  for (size_t i = 0; i < first; ++i) run(tensors[order[i]]);
  parallel_for(static_cast<int64_t>(order.size() - first), 1,
               [&](int64_t i, int64_t) { run(tensors[order[first + static_cast<size_t>(i)]]); });
}

std::vector<InitTensor> init_share(std::span<const InitTensor> tensors, int rank, int ranks) {
  std::vector<double> load(static_cast<size_t>(ranks), 0.0);
  std::vector<InitTensor> mine;
  for (const size_t i : by_cost(tensors)) {
    const auto least = std::ranges::min_element(load);
    *least += tensors[i].cost;
    if (least - load.begin() == rank) mine.push_back(tensors[i]);
  }
  return mine;
}

void init_uniform(std::span<float> out, double low, double high, uint64_t seed,
                  std::string_view name) {
  const Rng rng(seed, hash_name(name));
  parallel_for(static_cast<int64_t>(out.size()), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      out[static_cast<size_t>(i)] =
          static_cast<float>(low + (high - low) * rng.uniform(static_cast<uint64_t>(i)));
  });
}

void init_orthogonal(std::span<float> out, int64_t rows, int64_t cols, double gain, uint64_t seed,
                     std::string_view name) {
  RWKV_ASSERT(static_cast<int64_t>(out.size()) == rows * cols);
  const bool wide = rows < cols;
  const int64_t n = wide ? cols : rows, m = wide ? rows : cols;
  const bool by_rows = is_tall(n, m);
  const int64_t stride = n % 512 == 0 ? n + 8 : n;  // of columns; see orthonormal_by_householder
  // Element (i, j) of the (n, m) matrix is draw i m + j; where it lies is what the factorisation
  // wants.
  const auto at = [&](int64_t i, int64_t j) {
    return static_cast<size_t>(by_rows ? i * m + j : j * stride + i);
  };
  constexpr int64_t kTile = 64;  // rows, and columns at a time: one of the two sides is strided
  const auto each = [&](const auto& f) {
    parallel_for(n, kTile, [&](int64_t begin, int64_t end) {
      for (int64_t left = 0; left < m; left += kTile)
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = left; j < std::min(m, left + kTile); ++j) f(i, j);
    });
  };
  const auto a =
      std::make_unique_for_overwrite<double[]>(static_cast<size_t>(m * (by_rows ? n : stride)));
  const Rng rng(seed, hash_name(name));
  each([&](int64_t i, int64_t j) { a[at(i, j)] = rng.normal(static_cast<uint64_t>(i * m + j)); });
  if (by_rows)
    cpu::orthonormal_by_cholesky(a.get(), n, m);
  else
    cpu::orthonormal_by_householder(a.get(), n, m, stride);
  each([&](int64_t i, int64_t j) {
    out[static_cast<size_t>(wide ? j * cols + i : i * cols + j)] =
        static_cast<float>(gain * a[at(i, j)]);
  });
}

ParamId Initializer::id(const std::string& name) const {
  const auto found = params_.find(name);
  RWKV_ASSERT(found.has_value(), name);
  return *found;
}

void Initializer::add(const std::string& name, double cost,
                      std::function<void(std::span<float>)> fill, size_t workspace) {
  const ParamId tensor = id(name);
  const int64_t elements = params_[tensor].spec.numel();
  tensors_.push_back({tensor, cost * static_cast<double>(elements),
                      workspace * static_cast<size_t>(elements), std::move(fill)});
}

void Initializer::fill(const std::string& name, const std::function<double(double)>& f) {
  add(name, kFillCost, [f](std::span<float> t) {
    for (size_t i = 0; i < t.size(); ++i) t[i] = static_cast<float>(f(static_cast<double>(i)));
  });
}

void Initializer::constant(const std::string& name, double value) {
  add(name, kStoreCost,
      [value](std::span<float> t) { std::ranges::fill(t, static_cast<float>(value)); });
}

void Initializer::layer_norm(const std::string& name) {
  constant(name + ".weight", 1);
  constant(name + ".bias", 0);
}

void Initializer::uniform(const std::string& name, double low, double high) {
  add(name, kUniformCost,
      [=, seed = seed_](std::span<float> t) { init_uniform(t, low, high, seed, name); });
}

void Initializer::orthogonal(const std::string& name, double gain) {
  const TensorSpec& s = params_[id(name)].spec;
  const int64_t rows = s[0], cols = s[1];
  add(
      name, orthogonal_cost(rows, cols) / static_cast<double>(s.numel()),
      [=, seed = seed_](std::span<float> t) { init_orthogonal(t, rows, cols, gain, seed, name); },
      sizeof(double));
}

void Initializer::orthogonal_by_shape(const std::string& name, double scale) {
  const TensorSpec& s = params_[id(name)].spec;
  const double tall = static_cast<double>(s[0]) / static_cast<double>(s[1]);
  orthogonal(name, scale * (tall > 1 ? std::sqrt(tall) : 1));
}

}  // namespace rwkv
