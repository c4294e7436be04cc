#pragma once
/// Memory for kernels under test: filled with NaN and fenced, so that unwritten elements and writes
/// out of bounds show.

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace rwkv::test {

/// Owns a tensor's elements between two guard zones. Fresh f32 memory is quiet NaN throughout.
class GuardedBuffer {
 public:
  GuardedBuffer() = default;
  /// `misalign` moves the first element by that many 4-byte words from a 64-byte boundary.
  explicit GuardedBuffer(const TensorSpec& spec, size_t misalign = 0) : spec_(spec) {
    words_ = (spec.bytes() + 3) / 4;
    memory_.assign(words_ + 2 * kGuard + 2 * kAlign, kGuardWord);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data() + kGuard);
    offset_ = kGuard + (kAlign - address / 4 % kAlign) % kAlign + misalign % kAlign;
    for (size_t i = 0; i < words_; ++i) memory_[offset_ + i] = kFillWord;
  }

  TensorView view() { return TensorView(memory_.data() + offset_, spec_); }
  const TensorSpec& spec() const { return spec_; }
  template <class T>
  std::span<T> values() {
    return {reinterpret_cast<T*>(memory_.data() + offset_), static_cast<size_t>(spec_.numel())};
  }
  std::span<float> f32() { return values<float>(); }

  /// Both guard zones are as they were.
  testing::AssertionResult intact(const std::string& what) const {
    for (size_t i = 0; i < memory_.size(); ++i)
      if ((i < offset_ || i >= offset_ + words_) && memory_[i] != kGuardWord)
        return testing::AssertionFailure()
               << what << ": guard word " << static_cast<int64_t>(i) - static_cast<int64_t>(offset_)
               << " (relative to the first of " << words_ << " words) was overwritten";
    return testing::AssertionSuccess();
  }

 private:
  static constexpr size_t kGuard = 32, kAlign = 16;
  static constexpr uint32_t kGuardWord = 0x7fc0dead, kFillWord = 0x7fc00001;  // both are NaNs
  TensorSpec spec_;
  std::vector<uint32_t> memory_;
  size_t words_ = 0, offset_ = 0;
};

}  // namespace rwkv::test
