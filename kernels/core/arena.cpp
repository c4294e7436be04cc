#include "kernels/core/arena.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <utility>

#include "kernels/core/backend.h"

namespace rwkv {
namespace {
std::atomic<uint64_t> g_allocations{0};
}

Arena::Arena(Device device, size_t bytes, std::string purpose)
    : bytes_(align_up(bytes)), device_(device), purpose_(std::move(purpose)) {
  if (bytes_ == 0) return;
  if (device == Device::kCuda) {
    data_ = static_cast<std::byte*>(backend::cuda_allocate(bytes_, purpose_));
    g_allocations.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  // Anonymous pages are zero and page-aligned; huge pages spare the GEMMs TLB misses.
  void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  RWKV_CHECK(p != MAP_FAILED, DeviceError, "allocating ", format_bytes(bytes_), " for ", purpose_,
             ": out of memory; use a smaller batch, context or model");
  madvise(p, bytes_, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(p);
  g_allocations.fetch_add(1, std::memory_order_relaxed);
}

Arena::Arena(Device device, std::byte* data, size_t bytes, std::string purpose,
             std::function<void(std::byte*)> give_back)
    : data_(data),
      bytes_(bytes),
      device_(device),
      purpose_(std::move(purpose)),
      give_back_(std::move(give_back)) {
  RWKV_ASSERT(bytes % kArenaAlignment == 0, bytes, " bytes for ", purpose_);
  g_allocations.fetch_add(1, std::memory_order_relaxed);
}

void Arena::release() noexcept {
  if (data_ == nullptr) return;
  if (give_back_)
    give_back_(data_);
  else if (device_ == Device::kCuda)
    backend::cuda_release(data_);
  else
    munmap(data_, bytes_);
}

Arena::~Arena() {
  release();
}

Arena::Arena(Arena&& o) noexcept {
  *this = std::move(o);
}

Arena& Arena::operator=(Arena&& o) noexcept {
  if (this == &o) return *this;
  release();
  data_ = std::exchange(o.data_, nullptr);
  bytes_ = std::exchange(o.bytes_, 0);
  used_ = std::exchange(o.used_, 0);
  device_ = o.device_;
  purpose_ = std::move(o.purpose_);
  entries_ = std::move(o.entries_);
  give_back_ = std::exchange(o.give_back_, nullptr);
  return *this;
}

TensorView Arena::take(const TensorSpec& spec, std::string_view label) {
  const size_t need = align_up(spec.bytes());
  RWKV_ASSERT(used_ + need <= bytes_, "arena '", purpose_, "' of ", bytes_, " bytes, ", used_,
              " used, cannot hold ", need, " more for ", label);
  entries_.push_back({std::string(label), used_, spec.bytes()});
  const TensorView v(data_ + used_, spec, device_);
  used_ += need;
  return v;
}

TensorView Arena::at(size_t offset, const TensorSpec& spec) const {
  RWKV_ASSERT(offset + spec.bytes() <= bytes_);
  return TensorView(data_ + offset, spec, device_);
}

void Arena::reset() {
  used_ = 0;
  entries_.clear();
}

uint64_t arena_allocation_count() {
  return g_allocations.load(std::memory_order_relaxed);
}

std::string format_bytes(size_t bytes) {
  char text[32];
  const double b = static_cast<double>(bytes);
  if (bytes >= size_t{1} << 30)
    std::snprintf(text, sizeof text, "%.2f GiB", b / (1 << 30));
  else if (bytes >= size_t{1} << 20)
    std::snprintf(text, sizeof text, "%.1f MiB", b / (1 << 20));
  else
    std::snprintf(text, sizeof text, "%.1f KiB", b / (1 << 10));
  return text;
}

}  // namespace rwkv
