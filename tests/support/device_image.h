#pragma once
/// The tensors of one call in one block of memory, on any device: NaN until they are set, with
/// guard zones between them. The block is sent, worked on and fetched whole.

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/bf16.h"
#include "kernels/core/half.h"
#include "kernels/core/memory.h"

namespace rwkv::test {

class DeviceImage {
 public:
  explicit DeviceImage(Context& ctx) : ctx_(ctx) {}

  /// Adds a tensor of f32, bf16 or f16 and returns its index; all of it `fill`.
  size_t add(const TensorSpec& spec, float fill = std::numeric_limits<float>::quiet_NaN()) {
    return add_values(spec, std::vector<float>(static_cast<size_t>(spec.numel()), fill));
  }
  /// The same with values, which are rounded to the tensor's type.
  size_t add_values(const TensorSpec& spec, std::span<const float> values) {
    RWKV_ASSERT(values.size() == static_cast<size_t>(spec.numel()), to_string(spec));
    std::byte* p = append(spec);
    for (size_t i = 0; i < values.size(); ++i) {
      if (spec.dtype == DType::kBF16) {
        const BF16 x = to_bf16(values[i]);
        std::memcpy(p + 2 * i, &x, 2);
      } else if (spec.dtype == DType::kF16) {
        const F16 x = to_half(values[i]);
        std::memcpy(p + 2 * i, &x, 2);
      } else {
        RWKV_ASSERT(spec.dtype == DType::kF32, to_string(spec));
        std::memcpy(p + 4 * i, &values[i], 4);
      }
    }
    return tensors_.size() - 1;
  }
  /// Adds a tensor of i32 or i8.
  size_t add_ints(const TensorSpec& spec, std::span<const int32_t> values) {
    return add_raw<int32_t>(spec, values);
  }
  size_t add_bytes(const TensorSpec& spec, std::span<const int8_t> values) {
    return add_raw<int8_t>(spec, values);
  }

  /// After the last add, before the first view.
  void send() {
    words_.resize(words_.size() + kGuard / 4, kGuardWord);
    arena_ = Arena(ctx_.device(), words_.size() * 4, "image of a test");
    copy(ctx_, whole_device(), whole_host());
  }
  void fetch() { copy(ctx_, whole_host(), whole_device()); }

  TensorView view(size_t i) const { return arena_.at(tensors_[i].offset, tensors_[i].spec); }
  /// As of the last fetch (or add).
  std::vector<float> values(size_t i) const {
    const Tensor& t = tensors_[i];
    const std::byte* p = reinterpret_cast<const std::byte*>(words_.data()) + t.offset;
    std::vector<float> v(static_cast<size_t>(t.spec.numel()));
    for (size_t k = 0; k < v.size(); ++k) {
      if (t.spec.dtype == DType::kBF16) {
        BF16 x;
        std::memcpy(&x, p + 2 * k, 2);
        v[k] = to_float(x);
      } else if (t.spec.dtype == DType::kF16) {
        F16 x;
        std::memcpy(&x, p + 2 * k, 2);
        v[k] = to_float(x);
      } else {
        std::memcpy(&v[k], p + 4 * k, 4);
      }
    }
    return v;
  }
  std::vector<int32_t> ints(size_t i) const { return raw<int32_t>(i); }
  std::vector<int8_t> bytes(size_t i) const { return raw<int8_t>(i); }
  /// Everything between the tensors is as it was.
  testing::AssertionResult intact() const {
    const auto* p = reinterpret_cast<const uint8_t*>(words_.data());
    size_t at = 0;
    for (size_t i = 0; i <= tensors_.size(); ++i) {
      const size_t end = i < tensors_.size() ? tensors_[i].offset : words_.size() * 4;
      for (; at < end; ++at)
        if (p[at] != static_cast<uint8_t>(kGuardWord >> (8 * (at % 4))))
          return testing::AssertionFailure()
                 << "memory ahead of tensor " << i << " of " << tensors_.size()
                 << " was overwritten, " << end - at << " bytes before its begin";
      if (i < tensors_.size()) at = end + tensors_[i].spec.bytes();
    }
    return testing::AssertionSuccess();
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr uint32_t kGuardWord = 0x7fc17fc1;  // NaN in f32 and, twice, in bf16
  struct Tensor {
    TensorSpec spec;
    size_t offset;
  };
  template <class T>
  size_t add_raw(const TensorSpec& spec, std::span<const T> values) {
    RWKV_ASSERT(spec.dtype == DTypeOf<T>::value && values.size_bytes() == spec.bytes(),
                to_string(spec));
    std::memcpy(append(spec), values.data(), values.size_bytes());
    return tensors_.size() - 1;
  }
  template <class T>
  std::vector<T> raw(size_t i) const {
    const Tensor& t = tensors_[i];
    RWKV_ASSERT(t.spec.dtype == DTypeOf<T>::value, to_string(t.spec));
    std::vector<T> v(static_cast<size_t>(t.spec.numel()));
    std::memcpy(v.data(), reinterpret_cast<const std::byte*>(words_.data()) + t.offset,
                t.spec.bytes());
    return v;
  }
  std::byte* append(const TensorSpec& spec) {
    const size_t offset = align_up(words_.size() * 4 + kGuard);
    words_.resize((offset + align_up(spec.bytes())) / 4, kGuardWord);
    tensors_.push_back({spec, offset});
    return reinterpret_cast<std::byte*>(words_.data()) + offset;
  }
  TensorSpec whole() const {
    return TensorSpec({static_cast<int64_t>(words_.size())}, DType::kI32);
  }
  TensorView whole_host() { return {words_.data(), whole()}; }
  TensorView whole_device() const { return {arena_.data(), whole(), ctx_.device()}; }

  Context& ctx_;
  std::vector<uint32_t> words_;
  std::vector<Tensor> tensors_;
  Arena arena_;
};

/// Fills the reserved workspace with NaN, so that what is read before it is written shows.
inline void poison_workspace(Context& ctx, size_t bytes) {
  if (bytes < 4) return;
  std::vector<uint32_t> poison(bytes / 4, 0xffffffffu);
  const TensorSpec spec({static_cast<int64_t>(poison.size())}, DType::kI32);
  copy(ctx, TensorView(ctx.workspace(bytes), spec, ctx.device()), TensorView(poison.data(), spec));
  ctx.synchronize("test");
}

}  // namespace rwkv::test
