#pragma once
/// One allocation for one purpose, freed whole.

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/tensor.h"

namespace rwkv {

/// Alignment of every tensor in an arena: a cache line and an AVX-512 register; a quarter of what
/// CUDA's widest loads and cuBLAS want, so CUDA arenas round to 256 (the value used everywhere).
inline constexpr size_t kArenaAlignment = 256;

constexpr size_t align_up(size_t n, size_t a = kArenaAlignment) {
  return (n + a - 1) / a * a;
}

/// Owns one block of memory and hands out views, front to back. Move-only.
class Arena {
 public:
  struct Entry {
    std::string label;
    size_t offset, bytes;
  };

  Arena() = default;
  /// Zero-filled. Throws DeviceError, with purpose and size, if the memory cannot be had.
  Arena(Device device, size_t bytes, std::string purpose);
  /// Takes over zero-filled memory that another library gave; `give_back` gets it at the end and
  /// must not throw. `bytes` is a multiple of kArenaAlignment.
  Arena(Device device, std::byte* data, size_t bytes, std::string purpose,
        std::function<void(std::byte*)> give_back);
  ~Arena();
  Arena(Arena&& o) noexcept;
  Arena& operator=(Arena&& o) noexcept;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// The next free piece, aligned to kArenaAlignment. The view lives as long as the arena.
  /// Throws InternalError when the arena is full: sizes are planned, never guessed.
  TensorView take(const TensorSpec& spec, std::string_view label);
  /// A view at a planned byte offset.
  TensorView at(size_t offset, const TensorSpec& spec) const;
  /// Forgets all pieces (their views must no longer be used).
  void reset();

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  size_t used() const { return used_; }
  Device device() const { return device_; }
  const std::string& purpose() const { return purpose_; }
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  void release() noexcept;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0, used_ = 0;
  Device device_ = Device::kCpu;
  std::string purpose_;
  std::vector<Entry> entries_;
  std::function<void(std::byte*)> give_back_;
};

/// Heap allocations made by arenas since the program started: a test checks that a training step
/// makes none.
uint64_t arena_allocation_count();

/// "1.5 GiB", "312.0 MiB", "12 KiB"
std::string format_bytes(size_t bytes);

}  // namespace rwkv
