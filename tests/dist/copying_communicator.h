#pragma once
/// CPU ranks that behave as if copy engines moved their data: what ShardedParams does then is
/// tested without GPUs.

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <vector>

#include "kernels/core/bf16.h"
#include "trainer/comm/comm.h"

namespace rwkv::test {

/// `under` does the other collectives and must outlive this.
class CopyingCommunicator final : public Communicator {
 public:
  explicit CopyingCommunicator(Communicator& under) : under_(under) {}
  Device device() const override { return under_.device(); }
  HostGroup& group() const override { return under_.group(); }
  std::string description() const override { return "copies of " + under_.description(); }
  bool uses_copy_engines() const override { return true; }
  Arena allocate(size_t bytes, std::string purpose) override {
    Arena arena(device(), bytes, std::move(purpose));
    ranges_.push_back({arena.data(), arena.bytes()});
    return arena;
  }
  int64_t calls() const { return calls_; }

  void reduce_scatter(const void* in, void* out, int64_t count, DType type) override {
    under_.reduce_scatter(in, out, count, type);
  }
  void reduce_scatter_by_copies(const void* in, void* scratch, void* out, int64_t count,
                                DType type) override {
    const auto ranks = static_cast<size_t>(size());
    const size_t part = static_cast<size_t>(count) * dtype_bytes(type), whole = part * ranks;
    EXPECT_EQ(count % 8, 0);
    EXPECT_TRUE(known(in, whole));
    EXPECT_TRUE(known(scratch, whole));
    std::vector<std::byte> all(whole * ranks);
    group().all_gather(in, whole, all.data());
    for (size_t r = 0; r < ranks; ++r)
      std::memcpy(static_cast<std::byte*>(scratch) + r * part,
                  all.data() + r * whole + static_cast<size_t>(rank()) * part, part);
    if (type == DType::kF32)
      add(static_cast<const float*>(scratch), static_cast<float*>(out), count);
    else
      add(static_cast<const BF16*>(scratch), static_cast<BF16*>(out), count);
    ++calls_;
  }
  void all_gather(const void* in, void* out, int64_t count, DType type) override {
    under_.all_gather(in, out, count, type);
  }
  void all_reduce(void* data, int64_t count) override { under_.all_reduce(data, count); }
  void broadcast(void* data, int64_t count, DType type) override {
    under_.broadcast(data, count, type);
  }

 private:
  struct Range {
    const std::byte* data;
    size_t bytes;
  };
  bool known(const void* p, size_t bytes) const {
    for (const Range& r : ranges_)
      if (std::less_equal<>()(r.data, p) &&
          std::less_equal<>()(static_cast<const std::byte*>(p) + bytes, r.data + r.bytes))
        return true;
    return false;
  }
  template <class T>
  void add(const T* parts, T* out, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      float sum = to_float(parts[i]);
      for (int r = 1; r < size(); ++r) sum += to_float(parts[r * count + i]);
      if constexpr (std::is_same_v<T, float>)
        out[i] = sum;
      else
        out[i] = to_bf16(sum);
    }
  }
  static float to_float(float x) { return x; }
  static float to_float(BF16 x) { return rwkv::to_float(x); }

  Communicator& under_;
  std::vector<Range> ranges_;
  int64_t calls_ = 0;
};

}  // namespace rwkv::test
