#pragma once
/// Collectives of CPU tensors over a HostGroup, whatever connects it: so that ranks over TCP, whose
/// tensors NCCL moves in the products, can train in tests without a GPU. All data passes rank 0.

#include <cstring>
#include <vector>

#include "kernels/core/bf16.h"
#include "trainer/comm/comm.h"

namespace rwkv::test {

class HostCommunicator final : public Communicator {
 public:
  explicit HostCommunicator(HostGroup& group) : group_(group) {}

  Device device() const override { return Device::kCpu; }
  HostGroup& group() const override { return group_; }
  std::string description() const override { return "test ranks over TCP"; }

  void reduce_scatter(const void* in, void* out, int64_t count, DType type) override {
    exchange(in, static_cast<size_t>(count) * dtype_bytes(type) * static_cast<size_t>(size()));
    const int64_t first = rank() * count, stride = size() * count;
    if (type == DType::kF32)
      add(static_cast<float*>(out), first, count, stride);
    else
      add(static_cast<BF16*>(out), first, count, stride);
  }
  void all_gather(const void* in, void* out, int64_t count, DType type) override {
    exchange(in, static_cast<size_t>(count) * dtype_bytes(type));
    std::memcpy(out, all_.data(), all_.size());
  }
  void all_reduce(void* data, int64_t count) override {
    exchange(data, static_cast<size_t>(count) * sizeof(float));
    add(static_cast<float*>(data), 0, count, count);
  }
  void broadcast(void* data, int64_t count, DType type) override {
    group_.broadcast(data, static_cast<size_t>(count) * dtype_bytes(type));
  }

 private:
  /// all_ = what every rank passes, in the order of ranks.
  void exchange(const void* in, size_t bytes) {
    all_.resize(bytes * static_cast<size_t>(size()));
    group_.all_gather(in, bytes, all_.data());
  }
  static float widen(float x) { return x; }
  static float widen(BF16 x) { return to_float(x); }
  static void narrow(float x, float* to) { *to = x; }
  static void narrow(float x, BF16* to) { *to = to_bf16(x); }

  /// out = sum over ranks of elements [first, first + count) of what they passed.
  template <class T>
  void add(T* out, int64_t first, int64_t count, int64_t stride) const {
    const auto* parts = reinterpret_cast<const T*>(all_.data());
    for (int64_t i = 0; i < count; ++i) {
      float sum = widen(parts[first + i]);
      for (int r = 1; r < size(); ++r) sum += widen(parts[r * stride + first + i]);
      narrow(sum, out + i);
    }
  }

  HostGroup& group_;
  std::vector<std::byte> all_;
};

}  // namespace rwkv::test
