#include "kernels/wkv/registry.h"

#include <algorithm>
#include <array>

#include "kernels/wkv/cpu/wkv7_chunk.h"
#include "kernels/wkv/cpu/wkv7_serial.h"
#include "kernels/wkv/cuda/wkv7_kernels.h"

namespace rwkv {
namespace {

/// What "auto" follows. From `rwkv-bench wkv` at H = 12, N = 64, B = 1 on a Sapphire Rapids Xeon
/// (AVX-512), milliseconds forward + backward:
///
///   T      threads   serial   chunk16  chunk32  chunk64
///   16     1          0.46     0.38     0.63     1.34
///   64     1          1.75     1.31     1.56     1.95
///   512    2          6.92     5.18     5.82     7.36
///   2048   2         30.9     22.8     24.8     30.7
///
/// (one thread: an earlier version under load; two threads: tools/records/cpu-wkv.json.) Below 16
/// tokens a chunk is mostly padding. Heads of 32 and 128 order the variants in the same way.
struct Preference {
  int64_t tokens;  ///< from this number on
  std::string_view name;
};
constexpr Preference kWkv7Cpu[] = {
    {16, "wkv7.cpu.chunk16.f32"},
    {1, "wkv7.cpu.serial.f32"},
};

/// The variant that "auto" takes first; empty: none.
std::string_view preferred(std::string_view op, Device device, const WkvShape& shape) {
  if (op == "wkv7" && device == Device::kCpu) {
    for (const Preference& p : kWkv7Cpu)
      if (shape.tokens >= p.tokens) return p.name;
  }
  return {};
}

std::string shape_text(const WkvShape& s) {
  return str("batch ", s.batch, ", tokens ", s.tokens, ", heads ", s.heads, ", head size ",
             s.head_size);
}

std::string head_sizes_text(const WkvKernel& kernel) {
  std::string text;
  for (const int n : kernel.head_sizes) text += str(text.empty() ? "" : "/", n);
  return text;
}

}  // namespace

std::span<const WkvKernel* const> all_wkv_kernels() {
  // In the order of preference inside a family.
  static constexpr std::array kernels = {
    &cpu::kWkv7CpuSerial,
    &cpu::kWkv7CpuChunk16,
    &cpu::kWkv7CpuChunk32,
    &cpu::kWkv7CpuChunk64,
#if RWKV_HAVE_CUDA
    &cuda::kWkv7Chunk16,
    &cuda::kWkv7SerialBF16,
    &cuda::kWkv7SerialF32,
#endif
  };
  return kernels;
}

std::string wkv_misfit(const WkvKernel& kernel, std::string_view op, Device device, DType io,
                       const WkvShape& shape) {
  if (kernel.op != op) return str("it computes ", kernel.op, ", not ", op);
  if (kernel.device != device)
    return str("it runs on ", device_name(kernel.device), ", not on ", device_name(device));
  if (kernel.io != io)
    return str("its vectors are ", dtype_name(kernel.io), ", not ", dtype_name(io));
  const auto& sizes = kernel.head_sizes;
  if (std::find(sizes.begin(), sizes.end(), shape.head_size) == sizes.end())
    return str("head size ", shape.head_size, " is not one of ", head_sizes_text(kernel));
  if (shape.tokens % kernel.t_multiple != 0)
    return str(shape.tokens, " tokens are not a multiple of ", kernel.t_multiple);
  return {};
}

const WkvKernel& select_wkv(std::string_view op, Device device, DType io, const WkvShape& shape,
                            std::string_view wanted) {
  std::string reasons;
  const auto fits = [&](const WkvKernel& kernel) {
    const std::string why = wkv_misfit(kernel, op, device, io, shape);
    if (!why.empty()) reasons += str("\n  ", kernel.name, ": ", why);
    return why.empty();
  };
  if (wanted == "auto") {
    const std::string_view first = preferred(op, device, shape);
    for (const WkvKernel* kernel : all_wkv_kernels())
      if (kernel->name == first && fits(*kernel)) return *kernel;
    reasons.clear();
  }
  for (const WkvKernel* kernel : all_wkv_kernels()) {
    const bool named = kernel->name == wanted || kernel->family == wanted || wanted == "auto";
    if (!named) {
      reasons += str("\n  ", kernel->name, ": not asked for");
      continue;
    }
    if (fits(*kernel)) return *kernel;
  }
  throw ConfigError(
      str("choosing a ", op, " kernel on ", device_name(device), " for ", shape_text(shape), ", ",
          dtype_name(io), " vectors: '", wanted,
          "' gives none; use auto, a family (serial, chunk) or a full name:", reasons));
}

std::string list_wkv(const WkvShape& shape) {
  std::string text = str("for ", shape_text(shape), ":\n");
  const auto pad = [](std::string s, size_t width) {
    s.resize(std::max(width, s.size()), ' ');
    return s;
  };
  for (const WkvKernel* kernel : all_wkv_kernels()) {
    const std::string why = wkv_misfit(*kernel, kernel->op, kernel->device, kernel->io, shape);
    text += str(pad(std::string(kernel->name), 24), " family ", pad(std::string(kernel->family), 7),
                " head sizes ", pad(head_sizes_text(*kernel), 10), " tokens x", kernel->t_multiple,
                kernel->deterministic ? "  deterministic  " : "  not deterministic  ",
                why.empty() ? "fits" : str("does not fit: ", why), "\n    ", kernel->note, "\n");
  }
  return text;
}

}  // namespace rwkv
