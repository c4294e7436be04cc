#pragma once
/// The device that a test program checks. Programs with the ctest label `gpu` are made from the
/// same sources as those of the CPU, compiled with RWKV_TEST_CUDA (rwkv_gpu_test in
/// tests/CMakeLists.txt).

#include "kernels/core/context.h"
#include "kernels/core/error.h"

namespace rwkv::test {

#ifdef RWKV_TEST_CUDA
inline constexpr Device kTestDevice = Device::kCuda;
#else
inline constexpr Device kTestDevice = Device::kCpu;
#endif

/// A GPU can be used.
inline bool have_gpu() {
  try {
    const Context ctx(Device::kCuda);
    return true;
  } catch (const DeviceError&) {
    return false;
  }
}

/// kTestDevice can be used: tests skip themselves where it cannot.
inline bool have_test_device() {
  static const bool ready = kTestDevice == Device::kCpu || have_gpu();
  return ready;
}

}  // namespace rwkv::test

/// First line of a test (or SetUp) that needs kTestDevice.
#define RWKV_NEED_TEST_DEVICE() \
  if (!::rwkv::test::have_test_device()) GTEST_SKIP() << "no GPU"
