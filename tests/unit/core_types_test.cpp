// Errors, tensors, arenas, contexts and traces.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/core/error.h"
#include "kernels/core/tensor.h"

namespace rwkv {
namespace {

TEST(Error, ClassesMapToExitCodes) {
  EXPECT_EQ(ConfigError("").exit_code(), 2);
  EXPECT_EQ(ShapeError("").exit_code(), 2);
  EXPECT_EQ(DTypeError("").exit_code(), 2);
  EXPECT_EQ(IoError("").exit_code(), 3);
  EXPECT_EQ(DeviceError("").exit_code(), 4);
  EXPECT_EQ(NonFiniteError("").exit_code(), 5);
  EXPECT_EQ(InternalError("").exit_code(), 1);
}

TEST(Error, CheckJoinsItsPartsAndIsCaughtAsBase) {
  try {
    RWKV_CHECK(1 + 1 == 3, ShapeError, "found ", 2, ", expected ", 3);
    FAIL() << "no exception";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "found 2, expected 3");
    EXPECT_EQ(e.exit_code(), 2);
  }
  EXPECT_NO_THROW(RWKV_CHECK(true, ShapeError, "never"));
}

TEST(Error, AssertNamesPlaceExpressionAndMessage) {
  try {
    RWKV_ASSERT(2 < 1, "two is ", 2);
    FAIL() << "no exception";
  } catch (const InternalError& e) {
    const std::string text = e.what();
    for (const char* part : {"core_types_test.cpp", "2 < 1", "two is 2"})
      EXPECT_NE(text.find(part), std::string::npos) << part << " not in: " << text;
  }
  EXPECT_THROW(RWKV_ASSERT(false), InternalError);
}

TEST(TensorSpec, CountsElementsBytesAndRows) {
  const TensorSpec s({2, 3, 5}, DType::kBF16);
  EXPECT_EQ(s.numel(), 30);
  EXPECT_EQ(s.bytes(), 60u);
  EXPECT_EQ(s.rows(), 6);
  EXPECT_EQ(s.last(), 5);
  EXPECT_EQ(to_string(s), "(2, 3, 5) bf16");
  const TensorSpec scalar({});
  EXPECT_EQ(scalar.numel(), 1);
  EXPECT_EQ(scalar.rows(), 1);
  EXPECT_EQ(scalar.last(), 1);
  EXPECT_EQ(to_string(scalar), "() f32");
  EXPECT_EQ(TensorSpec({4, 0}).numel(), 0);
}

TEST(TensorSpec, ComparesShapeAndType) {
  EXPECT_TRUE(TensorSpec({2, 3}).same_shape(TensorSpec({2, 3}, DType::kI32)));
  EXPECT_FALSE(TensorSpec({2, 3}) == TensorSpec({2, 3}, DType::kI32));
  EXPECT_FALSE(TensorSpec({2, 3}).same_shape(TensorSpec({2, 3, 1})));
}

TEST(TensorSpec, RefusesNegativeAndFiveDimensions) {
  EXPECT_THROW(TensorSpec({2, -1}), ShapeError);
  EXPECT_THROW(TensorSpec({1, 1, 1, 1, 1}), ShapeError);
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(dtype_bytes(DType::kF32), 4u);
  EXPECT_EQ(dtype_bytes(DType::kF16), 2u);
  EXPECT_EQ(dtype_bytes(DType::kI8), 1u);
  EXPECT_EQ(dtype_bytes(DType::kI64), 8u);
  EXPECT_EQ(dtype_name(DType::kU16), "u16");
  EXPECT_EQ(device_name(Device::kCuda), "cuda");
}

TEST(TensorView, SlicesLeadingRows) {
  float data[12];
  const TensorView v(data, {4, 3});
  const TensorView s = v.slice(1, 3);
  EXPECT_EQ(s.f32(), data + 3);
  EXPECT_EQ(s.spec, TensorSpec({2, 3}));
  EXPECT_EQ(v.slice(4, 4).numel(), 0);
  EXPECT_THROW(v.slice(-1, 2), ShapeError);
  EXPECT_THROW(v.slice(0, 5), ShapeError);
  EXPECT_THROW(v.slice(3, 2), ShapeError);
  EXPECT_THROW(TensorView(data, TensorSpec({})).slice(0, 1), ShapeError);
}

TEST(TensorView, ReadsAsItsTypeOnly) {
  int32_t data[2] = {7, 8};
  const TensorView v(data, TensorSpec({2}, DType::kI32));
  EXPECT_EQ(v.as<int32_t>()[1], 8);
  EXPECT_THROW(v.f32(), DTypeError);
  EXPECT_FALSE(TensorView());
  EXPECT_EQ(TensorView().as<int32_t>(), nullptr);
}

TEST(Arena, HandsOutAlignedZeroedPiecesAndKeepsTheirNames) {
  Arena arena(Device::kCpu, 2000, "test");
  const TensorView a = arena.take({3}, "a"), b = arena.take({5, 5}, "b");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data) % kArenaAlignment, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data) % kArenaAlignment, 0u);
  EXPECT_GE(b.f32(), a.f32() + 3);
  for (int i = 0; i < 25; ++i) EXPECT_EQ(b.f32()[i], 0.0f);
  ASSERT_EQ(arena.entries().size(), 2u);
  EXPECT_EQ(arena.entries()[1].label, "b");
  EXPECT_EQ(arena.entries()[1].offset, kArenaAlignment);
  EXPECT_EQ(arena.entries()[1].bytes, 100u);
  EXPECT_EQ(arena.used(), 2 * kArenaAlignment);
  EXPECT_EQ(arena.at(kArenaAlignment, {25}).data, b.data);
  arena.reset();
  EXPECT_EQ(arena.used(), 0u);
  EXPECT_EQ(arena.take({1}, "c").data, a.data);
}

TEST(Arena, RefusesWhatDoesNotFit) {
  Arena arena(Device::kCpu, 512, "small");
  arena.take({64}, "first");
  try {
    arena.take({100}, "second");
    FAIL() << "no exception";
  } catch (const InternalError& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("small"), std::string::npos) << text;
    EXPECT_NE(text.find("second"), std::string::npos) << text;
  }
  EXPECT_THROW(arena.at(256, {65}), InternalError);
  EXPECT_THROW(Arena(Device::kCuda, 16, "x"), DeviceError);
  try {
    Arena(Device::kCpu, size_t{1} << 60, "far too much");
    FAIL() << "no exception";
  } catch (const DeviceError& e) {
    EXPECT_NE(std::string(e.what()).find("far too much"), std::string::npos) << e.what();
  }
}

TEST(Arena, MovesAndCountsAllocations) {
  const uint64_t before = arena_allocation_count();
  Arena a(Device::kCpu, 100, "one");
  EXPECT_EQ(arena_allocation_count(), before + 1);
  std::byte* data = a.data();
  Arena b(std::move(a));
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(a.data(), nullptr);  // NOLINT: a moved-from arena is empty
  a = std::move(b);
  EXPECT_EQ(a.data(), data);
  EXPECT_EQ(a.purpose(), "one");
  EXPECT_EQ(arena_allocation_count(), before + 1);
  Arena empty(Device::kCpu, 0, "nothing");
  EXPECT_EQ(empty.data(), nullptr);
  EXPECT_EQ(arena_allocation_count(), before + 1);
}

TEST(Arena, FormatsBytes) {
  EXPECT_EQ(format_bytes(12 * 1024), "12.0 KiB");
  EXPECT_EQ(format_bytes(size_t{312} << 20), "312.0 MiB");
  EXPECT_EQ(format_bytes(size_t{3} << 29), "1.50 GiB");
}

TEST(Context, WorkspaceMustBeReserved) {
  Context ctx;
  EXPECT_THROW(ctx.workspace(1), InternalError);
  ctx.reserve_workspace(1000);
  EXPECT_NE(ctx.workspace(1000), nullptr);
  const size_t bytes = ctx.workspace_bytes();
  ctx.reserve_workspace(10);
  EXPECT_EQ(ctx.workspace_bytes(), bytes);
  EXPECT_THROW(ctx.workspace(bytes + 1), InternalError);
}

TEST(Tracer, SumsByNameWhileEnabled) {
  Tracer tracer;
  { const TraceScope scope(tracer, "off", 1); }
  EXPECT_TRUE(tracer.rows().empty());
  tracer.enable(true);
  { const TraceScope scope(tracer, "a", 5); }
  { const TraceScope scope(tracer, "a", 7); }
  ASSERT_EQ(tracer.rows().size(), 1u);
  EXPECT_EQ(tracer.rows().at("a").calls, 2);
  EXPECT_EQ(tracer.rows().at("a").flops, 12);
  EXPECT_GE(tracer.rows().at("a").seconds, 0);
  tracer.clear();
  EXPECT_TRUE(tracer.rows().empty());
}

}  // namespace
}  // namespace rwkv
