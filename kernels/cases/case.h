#pragma once
/// Cases: shapes, model-like inputs and tolerances of every op. Tests and rwkv-bench walk them.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/rng.h"
#include "kernels/ops/op.h"

namespace rwkv::cases {

/// Writes every element of a view. Draws depend on `rng` and the element's index alone.
using Fill = std::function<void(const Rng& rng, const TensorView& out)>;

Fill normal(double mean, double deviation);
Fill uniform(double low, double high);
/// Ids in [0, vocab): the first two are the lowest and the highest id, the rest are random.
Fill ids(int64_t vocab);

struct Argument {
  std::string name;
  TensorSpec spec;
  Fill fill;            ///< of f32 or i32 views; see fill_argument
  bool matrix = false;  ///< a parameter that has the activations' type
};
/// Fills host memory; bf16 views get the rounded f32 values.
void fill_argument(const Argument& argument, const Rng& rng, const TensorView& out);

/// Largest allowed errors of an f32 kernel against the double reference, by the three measures of
/// tests/support/compare.h.
struct Limits {
  double element = 0, row = 0, rel = 0;
};
/// Limits for results at the end of `n` rounded operations: u (c + sqrt n) with u = 2^-23 and
/// c = 4 for relative L2 (rounding errors add up like a random walk: Higham and Mary 2019), four
/// times that for single rows and elements. `factor` is the amplification by the operations, where
/// it is not 1; the case says where it comes from.
Limits rounding(double n, double factor = 1);

enum class Use : uint8_t {
  kTest,       ///< small: compared with the reference
  kBench,      ///< a shape of a real model: for rwkv-bench, too slow for the reference
  kBenchCuda,  ///< the same, too large for a CPU
};

/// Sizes of a model of which benchmarks take their shapes.
struct BenchShape {
  Use use = Use::kBench;
  int64_t batch = 1, tokens = 512, width = 768, head_size = 64, vocab = 50304;
  int64_t heads() const { return width / head_size; }
  int64_t hidden() const { return 4 * width; }  ///< of the channel mix
};
/// L12-D768: some tokens for a CPU, 8 x 4096 for a GPU.
inline constexpr BenchShape kBenchShapes[] = {
    {Use::kBench, 1, 512, 768, 64, 50304},
    {Use::kBenchCuda, 8, 4096, 768, 64, 50304},
};

struct OpCase {
  std::string name;  ///< "layer_norm/b2_t17_c128"
  const Op* op = nullptr;
  std::vector<Argument> in, param;
  std::shared_ptr<const void> attrs;
  Limits forward, backward;
  Use use = Use::kTest;
  /// Share of inputs and parameters that the op reads, where it does not read all of them.
  double reads = 1;

  /// Outputs, saved tensors and workspace, by the op's own inference.
  ShapeCall infer() const;
  /// Bytes that an ideal kernel moves: every operand once, as far as it is read.
  double forward_bytes() const;
  double backward_bytes() const;
  double forward_flops() const;
  double backward_flops() const;

 private:
  double flops(double (*count)(const ShapeCall&)) const;
};

template <class Attrs>
std::shared_ptr<const void> attrs(const Attrs& a) {
  return std::make_shared<const Attrs>(a);
}

/// The case with activations and matrices in bf16: "layer_norm/b2_t17_c128_bf16".
OpCase in_bf16(OpCase c);

/// Cases of one op or file.
std::vector<OpCase> elementwise_cases(std::span<const BenchShape> bench);
std::vector<OpCase> embedding_cases(std::span<const BenchShape> bench);
std::vector<OpCase> feed_forward_cases(std::span<const BenchShape> bench);
std::vector<OpCase> key_prepare_cases(std::span<const BenchShape> bench);
std::vector<OpCase> last_token_cases(std::span<const BenchShape> bench);
std::vector<OpCase> layer_norm_cases(std::span<const BenchShape> bench);
std::vector<OpCase> linear_cases(std::span<const BenchShape> bench);
std::vector<OpCase> linear_cross_entropy_cases(std::span<const BenchShape> bench);
std::vector<OpCase> low_rank_cases(std::span<const BenchShape> bench);
std::vector<OpCase> token_shift_cases(std::span<const BenchShape> bench);
std::vector<OpCase> value_residual_cases(std::span<const BenchShape> bench);
std::vector<OpCase> wkv7_output_cases(std::span<const BenchShape> bench);
/// All of the above: the fixed test cases, and benchmark cases for each of these models. WKV-7 has
/// cases of its own (wkv7_cases.h).
std::vector<OpCase> all_cases(std::span<const BenchShape> bench = kBenchShapes);

}  // namespace rwkv::cases
