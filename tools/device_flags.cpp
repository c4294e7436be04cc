#include "tools/device_flags.h"

#include "kernels/core/backend.h"

namespace rwkv {
namespace {

/// A GPU is busy with so many tokens, and the activations of one sequence stay below 1 GiB.
constexpr int64_t kCudaPrefillTokens = 2048;

EngineOptions general_options(const DeviceFlags& f) {
  EngineOptions o{.wkv = f.wkv};
  if (f.device == "cpu") {
    o.fixed_weights = true;
    RWKV_CHECK(f.dtype != "bf16", ConfigError,
               "--dtype bf16: the CPU computes in f32 only; leave --dtype out, or use --device "
               "cuda");
    RWKV_CHECK(f.weights != "f16", ConfigError,
               "--weights f16: the CPU takes f32, bf16 or int8; use --device cuda, or bf16");
    if (f.weights == "bf16") o.weights = DType::kBF16;
    if (f.weights == "int8") o.weights = DType::kI8;
    return o;
  }
  RWKV_CHECK(f.weights.empty(), ConfigError, "--weights ", f.weights,
             ": it is for the CPU; with --device cuda the type of the matrices is --dtype");
  o.device = Device::kCuda;
  o.dtype = f.dtype == "f32" ? DType::kF32 : DType::kBF16;
  o.prefill_tokens = kCudaPrefillTokens;
  return o;
}

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
      ->check(CLI::IsMember({"f32", "bf16", "int8", "f16"}));
  app.add_option("--wkv", f.wkv, "WKV variant")->capture_default_str();
}

void check_device(const DeviceFlags& f) {
  if (f.device != "cuda") return;
  RWKV_CHECK(f.weights != "int8", ConfigError,
             "--weights int8: it is for the CPU; with --device cuda: f16, bf16 or f32");
  RWKV_CHECK(backend::has_cuda(), DeviceError,
             "--device cuda: this build has CPU kernels only; build with a CUDA toolkit (nvcc on "
             "the PATH), or use --device cpu");
  const Context probe(Device::kCuda);
}

EngineOptions engine_options(const DeviceFlags& f) {
  const EngineOptions o = general_options(f);
  check_device(f);
  return o;
}

void add_decode_flags(CLI::App& app, DeviceFlags& f) {
  add_device_flags(app, f);
  app.get_option("--dtype")->description(
      "with the general kernels, of activations and matrices: f32, or bf16 on cuda");
  app.get_option("--weights")
      ->description(
          "of matrices: on the CPU f32 (the default), bf16 or int8, fewer bytes decode faster; on "
          "cuda f16 (the default), bf16 or f32");
  app.add_option("--state", f.state, "of WKV states on cuda: f32 (the default) or f16, with dither")
      ->check(CLI::IsMember({"f32", "f16"}));
}

ServingOptions serving_options(const DeviceFlags& f, const ModelConfig& config) {
  ServingOptions o;
  const bool cuda = f.device == "cuda";
  if (!cuda || !f.dtype.empty() || f.wkv != "auto" || !decode_kernels_take(config)) {
    RWKV_CHECK(cuda || f.state.empty(), ConfigError, "--state ", f.state,
               ": it is for --device cuda; the CPU keeps WKV states in f32");
    RWKV_CHECK(!cuda || (f.weights.empty() && f.state.empty()), ConfigError,
               "--weights and --state with --device cuda are of the decoding kernels: for RWKV-7 "
               "with heads of 64 and a width of up to 4096, without --dtype and --wkv");
    o.engine = general_options(f);
    return o;
  }
  o.decode_kernels = true;
  o.engine.device = Device::kCuda;
  o.weights = f.weights == "f32" ? DType::kF32 : f.weights == "bf16" ? DType::kBF16 : DType::kF16;
  o.half_state = f.state == "f16";
  return o;
}

}  // namespace rwkv
