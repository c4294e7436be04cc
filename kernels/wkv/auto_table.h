#pragma once
/// What "auto" follows, from measurements. Only registry.cpp reads it.

#include <cstdint>
#include <string_view>

#include "kernels/core/dtype.h"

namespace rwkv {

/// The first row whose limits a call reaches names its variant; if that does not fit (head size),
/// or no row is reached, the first variant in the registry's order that fits is taken.
struct WkvAutoRow {
  std::string_view op;
  Device device;
  DType io;
  int64_t tokens;         ///< from this length on
  int64_t streams;        ///< from this many sequences x heads on
  std::string_view name;  ///< of a variant
  std::string_view why;   ///< the measurement, for --list
};

/// CPU: `rwkv-bench wkv` at H = 12, N = 64, B = 1 on a Sapphire Rapids Xeon (AVX-512), milliseconds
/// forward + backward:
///
///   T      threads   serial   chunk16  chunk32  chunk64
///   16     1          0.46     0.38     0.63     1.34
///   64     1          1.75     1.31     1.56     1.95
///   512    2          6.92     5.18     5.82     7.36
///   2048   2         30.9     22.8     24.8     30.7
///
/// (one thread: an earlier version under load; two threads: tools/records/cpu-wkv.json.) Below 16
/// tokens a chunk is mostly padding. Heads of 32 and 128 order the variants in the same way.
inline constexpr WkvAutoRow kWkvAutoTable[] = {
    {"wkv7", Device::kCpu, DType::kF32, 16, 1, "wkv7.cpu.chunk16.f32",
     "fastest from 16 tokens on (tools/records/cpu-wkv.json)"},
    {"wkv7", Device::kCpu, DType::kF32, 1, 1, "wkv7.cpu.serial.f32",
     "below 16 tokens a chunk is mostly padding (tools/records/cpu-wkv.json)"},
    {"wkv7", Device::kCuda, DType::kBF16, 256, 133, "wkv7.cuda.chunk16.bf16",
     "enough heads to fill the GPU (tools/records/h200-wkv7.json)"},
    {"wkv7", Device::kCuda, DType::kBF16, 256, 1, "wkv7.cuda.scan16.bf16",
     "too few heads to fill the GPU (tools/records/h200-wkv7.json)"},
    {"wkv7", Device::kCuda, DType::kBF16, 1, 1, "wkv7.cuda.chunk16.bf16",
     "too short to cut (tools/records/h200-wkv7.json)"},
    {"wkv7", Device::kCuda, DType::kF32, 1, 1, "wkv7.cuda.serial.f32", "the only one"},
};

}  // namespace rwkv
