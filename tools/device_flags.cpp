#include "tools/device_flags.h"

#include "kernels/core/backend.h"

namespace rwkv {
namespace {

/// A GPU is busy with so many tokens, and the activations of one sequence stay below 1 GiB.
constexpr int64_t kCudaPrefillTokens = 2048;

}  // namespace

void add_device_flags(CLI::App& app, DeviceFlags& f) {
  app.add_option("--device", f.device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--dtype", f.dtype,
                 "of activations and matrices: f32, or bf16 on cuda (there the default)")
      ->check(CLI::IsMember({"f32", "bf16"}));
  app.add_option(
         "--weights", f.weights,
         "of matrices on the CPU: f32 (the default), bf16 or int8; fewer bytes decode faster")
      ->check(CLI::IsMember({"f32", "bf16", "int8"}));
  app.add_option("--wkv", f.wkv, "WKV variant")->capture_default_str();
}

EngineOptions engine_options(const DeviceFlags& f) {
  EngineOptions o{.wkv = f.wkv};
  if (f.device == "cpu") {
    o.fixed_weights = true;
    RWKV_CHECK(f.dtype != "bf16", ConfigError,
               "--dtype bf16: the CPU computes in f32 only; leave --dtype out, or use --device "
               "cuda");
    if (f.weights == "bf16") o.weights = DType::kBF16;
    if (f.weights == "int8") o.weights = DType::kI8;
    return o;
  }
  RWKV_CHECK(f.weights.empty(), ConfigError, "--weights ", f.weights,
             ": it is for the CPU; with --device cuda the type of the matrices is --dtype");
  RWKV_CHECK(backend::has_cuda(), DeviceError,
             "--device cuda: this build has CPU kernels only; build with a CUDA toolkit (nvcc on "
             "the PATH), or use --device cpu");
  const Context probe(Device::kCuda);
  o.device = Device::kCuda;
  o.dtype = f.dtype == "f32" ? DType::kF32 : DType::kBF16;
  o.prefill_tokens = kCudaPrefillTokens;
  return o;
}

}  // namespace rwkv
