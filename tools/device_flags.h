#pragma once
/// --device, --dtype, --weights and --wkv of the programs that run models forward.

#include <CLI/CLI.hpp>
#include <string>

#include "inference/engine.h"

namespace rwkv {

struct DeviceFlags {
  std::string device = "cpu", dtype, weights, wkv = "auto";
};

/// Adds --device, --dtype, --weights and --wkv.
void add_device_flags(CLI::App& app, DeviceFlags& flags);

/// What they mean for an engine, with the piece length that suits the device. Looks for the device,
/// so that a missing one is found before a model is read: throws DeviceError, or ConfigError for
/// bf16 on the CPU and for packed weights on a GPU.
EngineOptions engine_options(const DeviceFlags& flags);

}  // namespace rwkv
