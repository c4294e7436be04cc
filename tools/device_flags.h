#pragma once
/// --device, --dtype, --weights, --state and --wkv of the programs that run models forward.

#include <CLI/CLI.hpp>
#include <string>

#include "inference/engine.h"
#include "inference/serving.h"

namespace rwkv {

struct DeviceFlags {
  std::string device = "cpu", dtype, weights, state, wkv = "auto";
};

/// Adds --device, --dtype, --weights and --wkv.
void add_device_flags(CLI::App& app, DeviceFlags& flags);

/// What they mean for an engine, with the piece length that suits the device. Looks for it as
/// check_device: throws DeviceError, or ConfigError for bf16 on the CPU and for packed weights on a
/// GPU.
EngineOptions engine_options(const DeviceFlags& flags);

/// Adds --state, and what --weights means on a GPU, for programs that decode.
void add_decode_flags(CLI::App& app, DeviceFlags& flags);
/// Looks for the device, so that a missing one is found before a model is read. Throws DeviceError,
/// ConfigError for int8 weights on a GPU.
void check_device(const DeviceFlags& flags);
/// What they mean for serving a model: on a GPU the decoding kernels, unless they do not take the
/// model or --dtype or --wkv asks for the general ones. Throws ConfigError. Looks for no device.
ServingOptions serving_options(const DeviceFlags& flags, const ModelConfig& config);

}  // namespace rwkv
