#include "kernels/wkv/registry.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/wkv/auto_table.h"
#include "kernels/wkv/cpu/wkv4_cpu.h"
#include "kernels/wkv/cpu/wkv7_chunk.h"
#include "kernels/wkv/cpu/wkv7_fp16.h"
#include "kernels/wkv/cpu/wkv7_serial.h"
#include "kernels/wkv/cuda/wkv4_kernels.h"
#include "kernels/wkv/cuda/wkv7_kernels.h"

namespace rwkv {
namespace {

/// The row of the table that "auto" follows for a shape; null: none.
const WkvAutoRow* preferred(std::string_view op, Device device, DType io, const WkvShape& shape) {
  // Streams: sequences x heads, where WKV-4's heads are its channels.
  const int64_t heads = op == "wkv4" ? shape.heads * shape.head_size : shape.heads;
  for (const WkvAutoRow& row : kWkvAutoTable)
    if (row.op == op && row.device == device && row.io == io && shape.tokens >= row.tokens &&
        shape.batch * heads >= row.streams)
      return &row;
  return nullptr;
}

std::string shape_text(const WkvShape& s) {
  return str("batch ", s.batch, ", tokens ", s.tokens, ", heads ", s.heads, ", head size ",
             s.head_size);
}

std::string head_sizes_text(const WkvKernel& kernel) {
  if (kernel.head_sizes.empty()) return "any";
  std::string text;
  for (const int n : kernel.head_sizes) text += str(text.empty() ? "" : "/", n);
  return text;
}

/// "serial, chunk, ...": the families of an op.
std::string families(std::string_view op) {
  std::vector<std::string_view> seen;
  std::string text;
  for (const WkvKernel* kernel : all_wkv_kernels()) {
    if (kernel->op != op || std::ranges::find(seen, kernel->family) != seen.end()) continue;
    seen.push_back(kernel->family);
    text += str(text.empty() ? "" : ", ", kernel->family);
  }
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
    &cpu::kWkv7CpuFp16Dithered,
    &cpu::kWkv7CpuFp16Plain,
    &cpu::kWkv4CpuSerial,
    &cpu::kWkv4CpuScan,
    &cpu::kWkv4CpuCumsum,
    &cpu::kWkv4CpuCumsumNaive,
#if RWKV_HAVE_CUDA
    &cuda::kWkv7Chunk16,
    &cuda::kWkv7Scan16,
    &cuda::kWkv7SerialBF16,
    &cuda::kWkv7SerialF32,
    &cuda::kWkv7Fp16DitheredBF16,
    &cuda::kWkv7Fp16DitheredF32,
    &cuda::kWkv7Fp16PlainBF16,
    &cuda::kWkv7Fp16PlainF32,
    &cuda::kWkv4ScanBF16,
    &cuda::kWkv4ScanF32,
    &cuda::kWkv4SerialBF16,
    &cuda::kWkv4SerialF32,
    &cuda::kWkv4CumsumBF16,
    &cuda::kWkv4CumsumF32,
    &cuda::kWkv4CumsumNaiveBF16,
    &cuda::kWkv4CumsumNaiveF32,
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
  if (!sizes.empty() && std::find(sizes.begin(), sizes.end(), shape.head_size) == sizes.end())
    return str("head size ", shape.head_size, " is not one of ", head_sizes_text(kernel));
  if (shape.tokens % kernel.t_multiple != 0)
    return str(shape.tokens, " tokens are not a multiple of ", kernel.t_multiple);
  if (shape.tokens < kernel.min_tokens)
    return str(shape.tokens, " tokens are fewer than ", kernel.min_tokens);
  return {};
}

const WkvKernel& select_wkv(std::string_view op, Device device, DType io, const WkvShape& shape,
                            std::string_view wanted) {
  std::string reasons, others;
  const auto note = [](std::string& list, const auto&... what) {
    list += str(list.empty() ? "" : "; ", what...);
  };
  const auto fits = [&](const WkvKernel& kernel) {
    const std::string why = wkv_misfit(kernel, op, device, io, shape);
    if (!why.empty()) note(reasons, kernel.name, ": ", why);
    return why.empty();
  };
  if (wanted == "auto") {
    const WkvAutoRow* const row = preferred(op, device, io, shape);
    for (const WkvKernel* kernel : all_wkv_kernels())
      if (row != nullptr && kernel->name == row->name && fits(*kernel)) return *kernel;
    reasons.clear();
  }
  for (const WkvKernel* kernel : all_wkv_kernels()) {
    if (kernel->op != op) continue;
    // A 16-bit state is another model of the arithmetic: never taken without being asked for.
    const bool named = kernel->name == wanted || kernel->family == wanted ||
                       (wanted == "auto" && kernel->state == DType::kF32);
    if (!named) {
      note(others, kernel->name);
      continue;
    }
    if (fits(*kernel)) return *kernel;
  }
  throw ConfigError(str("choosing a ", op, " kernel on ", device_name(device), " for ",
                        shape_text(shape), ", ", dtype_name(io), " vectors: '", wanted,
                        "' gives none", reasons.empty() ? "" : " (" + reasons + ")",
                        "; use auto, a family (", families(op), ") or a full name",
                        others.empty() ? "" : ": " + others));
}

bool wkv_counts_tokens(std::string_view wanted) {
  return std::ranges::any_of(all_wkv_kernels(), [&](const WkvKernel* k) {
    return k->state == DType::kF16 && (k->name == wanted || k->family == wanted);
  });
}

std::string list_wkv(const WkvShape& shape, std::string_view only) {
  std::string text = str("for ", shape_text(shape), ":\n");
  const auto pad = [](std::string s, size_t width) {
    s.resize(std::max(width, s.size()), ' ');
    return s;
  };
  for (const WkvKernel* kernel : all_wkv_kernels()) {
    if (!only.empty() && kernel->op != only) continue;
    const std::string why = wkv_misfit(*kernel, kernel->op, kernel->device, kernel->io, shape);
    text += str(pad(std::string(kernel->name), 24), " family ", pad(std::string(kernel->family), 7),
                " head sizes ", pad(head_sizes_text(*kernel), 10), " tokens x", kernel->t_multiple,
                kernel->deterministic ? "  deterministic  " : "  not deterministic  ",
                why.empty() ? "fits" : str("does not fit: ", why), "\n    ", kernel->note, "\n");
  }
  for (const std::string_view op : {"wkv7", "wkv4"})
    for (const Device device : {Device::kCpu, Device::kCuda})
      for (const DType io : {DType::kF32, DType::kBF16})
        if (std::ranges::any_of(all_wkv_kernels(), [&](const WkvKernel* k) {
              return k->op == op && k->device == device && k->io == io &&
                     (only.empty() || op == only);
            }))
          text += str(op, " on ", device_name(device), " with ", dtype_name(io),
                      " vectors: ", explain_wkv_auto(op, device, io, shape), "\n");
  return text;
}

std::string explain_wkv_auto(std::string_view op, Device device, DType io, const WkvShape& shape) {
  const WkvAutoRow* const row = preferred(op, device, io, shape);
  try {
    const WkvKernel& chosen = select_wkv(op, device, io, shape, "auto");
    const bool by_table = row != nullptr && row->name == chosen.name;
    return str(
        "auto takes ", chosen.name, ": ",
        by_table ? row->why : "the first of the list that fits; no measurement speaks for another");
  } catch (const ConfigError&) {
    return "auto finds nothing that fits";
  }
}

}  // namespace rwkv
