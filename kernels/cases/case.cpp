#include "kernels/cases/case.h"

#include <cmath>

#include "kernels/core/bf16.h"

namespace rwkv::cases {
namespace {

double bytes_of(const std::vector<TensorSpec>& specs) {
  double sum = 0;
  for (const TensorSpec& s : specs) sum += static_cast<double>(s.bytes());
  return sum;
}

double bytes_of(const std::vector<Argument>& args, uint32_t mask = ~0u) {
  double sum = 0;
  for (size_t i = 0; i < args.size(); ++i)
    if (mask >> i & 1u) sum += static_cast<double>(args[i].spec.bytes());
  return sum;
}

/// Gradients of inputs have their type, those of parameters are f32; ids have none.
double gradient_bytes(const std::vector<Argument>& in, const std::vector<Argument>& param) {
  double sum = 0;
  for (const Argument& a : in)
    if (a.spec.dtype != DType::kI32) sum += static_cast<double>(a.spec.bytes());
  for (const Argument& a : param) sum += 4.0 * static_cast<double>(a.spec.numel());
  return sum;
}

std::vector<TensorSpec> specs_of(const std::vector<Argument>& args) {
  std::vector<TensorSpec> specs;
  for (const Argument& a : args) specs.push_back(a.spec);
  return specs;
}

}  // namespace

Fill normal(double mean, double deviation) {
  return [=](const Rng& rng, const TensorView& out) {
    float* v = out.f32();
    for (int64_t i = 0; i < out.numel(); ++i)
      v[i] = static_cast<float>(mean + deviation * rng.normal(static_cast<uint64_t>(i)));
  };
}

Fill uniform(double low, double high) {
  return [=](const Rng& rng, const TensorView& out) {
    float* v = out.f32();
    for (int64_t i = 0; i < out.numel(); ++i)
      v[i] = static_cast<float>(low + (high - low) * rng.uniform(static_cast<uint64_t>(i)));
  };
}

Fill ids(int64_t vocab) {
  return [=](const Rng& rng, const TensorView& out) {
    auto* v = out.as<int32_t>();
    for (int64_t i = 0; i < out.numel(); ++i)
      v[i] =
          static_cast<int32_t>(rng.below(static_cast<uint64_t>(i), static_cast<uint64_t>(vocab)));
    v[0] = 0;
    if (out.numel() > 1) v[1] = static_cast<int32_t>(vocab - 1);
  };
}

void fill_argument(const Argument& argument, const Rng& rng, const TensorView& out) {
  if (out.spec.dtype != DType::kBF16) return argument.fill(rng, out);
  std::vector<float> values(static_cast<size_t>(out.numel()));
  TensorSpec spec = out.spec;
  spec.dtype = DType::kF32;
  argument.fill(rng, TensorView(values.data(), spec));
  auto* to = out.as<BF16>();
  for (size_t i = 0; i < values.size(); ++i) to[i] = to_bf16(values[i]);
}

OpCase in_bf16(OpCase c) {
  c.name += "_bf16";
  for (Argument& a : c.in)
    if (a.spec.dtype == DType::kF32) a.spec.dtype = DType::kBF16;
  for (Argument& a : c.param)
    if (a.matrix) a.spec.dtype = DType::kBF16;
  return c;
}

Limits rounding(double n, double factor) {
  const double rel = factor * std::ldexp(4.0 + std::sqrt(n), -23);
  return {4 * rel, 4 * rel, rel};
}

ShapeCall OpCase::infer() const {
  const std::vector<TensorSpec> inputs = specs_of(in), params = specs_of(param);
  ShapeCall call;
  call.in = inputs;
  call.param = params;
  call.attrs = attrs.get();
  op->infer(call);
  call.in = {};
  call.param = {};
  return call;
}

double OpCase::forward_bytes() const {
  const ShapeCall call = infer();
  return reads * (bytes_of(in) + bytes_of(param)) + bytes_of(call.out) + bytes_of(call.saved);
}

double OpCase::backward_bytes() const {
  const ShapeCall call = infer();
  return reads * (bytes_of(in, op->backward_reads_in) + bytes_of(param)) +
         gradient_bytes(in, param) + bytes_of(call.out) + bytes_of(call.saved);
}

double OpCase::forward_flops() const {
  return flops(op->forward_flops);
}

double OpCase::backward_flops() const {
  return flops(op->backward_flops);
}

double OpCase::flops(double (*count)(const ShapeCall&)) const {
  if (count == nullptr) return 0;
  const std::vector<TensorSpec> inputs = specs_of(in), params = specs_of(param);
  ShapeCall call;
  call.in = inputs;
  call.param = params;
  call.attrs = attrs.get();
  return count(call);
}

std::vector<OpCase> all_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> all;
  for (const auto& list :
       {elementwise_cases(bench), embedding_cases(bench), feed_forward_cases(bench),
        key_prepare_cases(bench), last_token_cases(bench), layer_norm_cases(bench),
        linear_cases(bench), linear_cross_entropy_cases(bench), low_rank_cases(bench),
        token_shift_cases(bench), value_residual_cases(bench), wkv7_output_cases(bench)})
    all.insert(all.end(), list.begin(), list.end());
  return all;
}

}  // namespace rwkv::cases
