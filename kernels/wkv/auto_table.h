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

inline constexpr std::string_view kChunk = "wkv7.cuda.chunk16.bf16";
inline constexpr std::string_view kScan = "wkv7.cuda.scan16.bf16";
inline constexpr std::string_view kFull =
    "as many sequences x heads fill the GPU at this length (tools/records/h200-wkv-streams.json)";
inline constexpr std::string_view kIdle =
    "so few sequences x heads leave the GPU idle unless the sequence is cut "
    "(tools/records/h200-wkv-streams.json)";

inline constexpr std::string_view kWkv4Long =
    "all of the GPU works on one sequence (auto_table.h, tools/gpu/wkv4_notes.md)";
inline constexpr std::string_view kWkv4Short =
    "so few tokens leave nothing to scan (auto_table.h, tools/gpu/wkv4_notes.md)";

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
///
/// CUDA, bf16: `tools/gpu/bench.sh OUT streams` on an H200, N = 64, microseconds forward +
/// backward, chunk16 / scan16, by tokens and sequences x heads:
///
///   T     12            48            96            144           192           216
///   192   53 / 50       53 / 43       56 / 50       68 / 64       72 / 67       71 / 71
///   256   68 / 60       69 / 54       72 / 64       87 / 81       92 / 84       91 / 92
///   512   129 / 67      132 / 89      134 / 100     163 / 148     171 / 152     170 / 170
///   1024  251 / 83      255 / 151     255 / 187     315 / 281     326 / 290     328 / 329
///   4096  987 / 207     988 / 438     986 / 693     1227 / 1065   1258 / 1082   1260 / 1267
///
/// From 199 on (half of the blocks that fit) scan16 cuts nothing and is the same. At 160 tokens 12
/// and 24 take 46 / 50 and 46 / 53, 36 and more 46 / 41 to 61 / 60. Heads of 32 and 128 order the
/// variants in the same way.
///
/// serial takes as long as chunk16 at 2 tokens and ten times as long from 64 on. What is equal goes
/// to chunk16, which saves less.
///
/// WKV-4 on the CPU: two threads of a Sapphire Rapids Xeon (AVX-512), rates e^-5 to e^3,
/// milliseconds forward + backward (tools/records/cpu-wkv4.json):
///
///   B, T, C         serial         scan           cumsum
///   1, 64, 768      0.045 + 0.142  0.055 + 0.152  0.051 + 0.160
///   1, 512, 768     0.24 + 1.01    0.48 + 1.58    0.28 + 1.12
///   1, 4096, 256    0.74 + 3.37    1.36 + 5.92    0.83 + 4.23
///   8, 2048, 256    4.81 + 18.62   7.98 + 31.15   5.74 + 24.51
///   1, 16384, 32    0.29 + 1.04    0.56 + 1.45    0.28 + 1.07
///
/// With 32 channels and 2^17 tokens or more cumsum takes 10 to 19 % less than serial. A program
/// built for AVX2 (-march=x86-64-v3) on the same machine has half the lanes and registers: cumsum,
/// with one exponential per token, then takes 10 to 30 % less than serial.
///
/// WKV-4 on CUDA: microseconds forward + backward on an H200, f32, serial / scan (bf16 and more
/// sizes: tools/gpu/wkv4_notes.md):
///
///   T       1 x 32           1 x 768          8 x 768
///   1        4.0+7.1 / 4.6+7.5   4.1+7.5 / 4.8+7.8   4.1+7.6 / 5.6+9.2
///   8        4.3+8.0 / 4.8+7.6   4.5+8.4 / 5.0+7.8   4.5+8.5 / 5.9+9.2
///   16       4.6+8.5 / 4.6+7.6   4.6+8.5 / 4.8+7.8   4.8+8.9 / 5.7+9.4
///   32       5.5+11.0 / 4.6+7.5  5.7+11.2 / 4.8+7.8  5.9+11.6 / 5.8+9.4
///   1024     65+165 / 8.4+12.8   65+166 / 10.3+17.8  68+169 / 30+74
///   65536    3928+10176 / 33+105  3948+10191 / 215+603  3978+10216 / 1404+3568
///
/// cumsum stays behind scan at nearly every size, and its time depends on the decays.
inline constexpr WkvAutoRow kWkvAutoTable[] = {
    {"wkv4", Device::kCpu, DType::kF32, 1, 1, "wkv4.cpu.serial.f32",
     "least arithmetic; the others win nowhere by much (tools/records/cpu-wkv4.json)"},
    {"wkv4", Device::kCuda, DType::kBF16, 32, 1, "wkv4.cuda.scan.bf16", kWkv4Long},
    {"wkv4", Device::kCuda, DType::kBF16, 16, 4096, "wkv4.cuda.serial.bf16", kWkv4Short},
    {"wkv4", Device::kCuda, DType::kBF16, 16, 1, "wkv4.cuda.scan.bf16", kWkv4Long},
    {"wkv4", Device::kCuda, DType::kBF16, 1, 1, "wkv4.cuda.serial.bf16", kWkv4Short},
    {"wkv4", Device::kCuda, DType::kF32, 32, 1, "wkv4.cuda.scan.f32", kWkv4Long},
    {"wkv4", Device::kCuda, DType::kF32, 16, 4096, "wkv4.cuda.serial.f32", kWkv4Short},
    {"wkv4", Device::kCuda, DType::kF32, 16, 1, "wkv4.cuda.scan.f32", kWkv4Long},
    {"wkv4", Device::kCuda, DType::kF32, 1, 1, "wkv4.cuda.serial.f32", kWkv4Short},
    {"wkv7", Device::kCpu, DType::kF32, 16, 1, "wkv7.cpu.chunk16.f32",
     "fastest from 16 tokens on (tools/records/cpu-wkv.json)"},
    {"wkv7", Device::kCpu, DType::kF32, 1, 1, "wkv7.cpu.serial.f32",
     "below 16 tokens a chunk is mostly padding (tools/records/cpu-wkv.json)"},
    {"wkv7", Device::kCuda, DType::kBF16, 192, 199, kChunk, kFull},
    {"wkv7", Device::kCuda, DType::kBF16, 192, 1, kScan, kIdle},
    {"wkv7", Device::kCuda, DType::kBF16, 1, 1, kChunk,
     "too short to be cut into segments (tools/records/h200-wkv-lengths.json)"},
    {"wkv7", Device::kCuda, DType::kF32, 1, 1, "wkv7.cuda.serial.f32", "the only one"},
};

}  // namespace rwkv
