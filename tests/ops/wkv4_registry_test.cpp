// Choosing WKV-4 variants, and the checks of the wkv4 op.
#include <gtest/gtest.h>

#include <string>

#include "kernels/wkv/registry.h"
#include "kernels/wkv/wkv.h"

namespace rwkv::test {
namespace {

const WkvKernel& choose(const WkvShape& shape, std::string_view wanted) {
  return select_wkv("wkv4", Device::kCpu, DType::kF32, shape, wanted);
}

// The message of the exception that `fn` throws, which must be an `E`.
template <class E, class Fn>
std::string message_of(const Fn& fn) {
  try {
    fn();
  } catch (const E& e) {
    return e.what();
  } catch (const std::exception& e) {
    ADD_FAILURE() << "wrong type of exception: " << e.what();
    return {};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(Wkv4Registry, AutoFitsEveryShapeAndIsNeverNaive) {
  for (const int64_t tokens : {1, 2, 63, 64, 100, 4096, 524288})
    for (const int64_t batch : {1, 8, 64})
      for (const int64_t channels : {1, 32, 37, 768}) {
        const WkvKernel& k = choose({batch, tokens, channels, 1, false}, "auto");
        EXPECT_EQ(k.op, "wkv4");
        EXPECT_NE(k.family, "cumsum-naive");
      }
  EXPECT_EQ(choose({1, 1, 768, 1, true}, "auto").family, "serial");
  EXPECT_EQ(choose({1, 1024, 768, 1, false}, "auto").family, "serial");
  EXPECT_EQ(choose({1, 1024, 12, 64, false}, "auto").family, "serial");  // the same channels
}

#if RWKV_HAVE_CUDA
TEST(Wkv4Registry, AutoOnCuda) {
  const auto family = [](const WkvShape& shape, DType io) {
    return select_wkv("wkv4", Device::kCuda, io, shape, "auto").family;
  };
  for (const DType io : {DType::kF32, DType::kBF16}) {
    for (const int64_t channels : {32, 256, 768}) {
      for (const int64_t tokens : {1, 2, 15})
        for (const int64_t batch : {1, 8})
          EXPECT_EQ(family({batch, tokens, channels, 1, true}, io), "serial");
      EXPECT_EQ(family({1, 16, channels, 1, false}, io), "scan");
      for (const int64_t tokens : {32, 64, 1024, 65536, 524288})
        for (const int64_t batch : {1, 8})
          EXPECT_EQ(family({batch, tokens, channels, 1, false}, io), "scan");
    }
    EXPECT_EQ(family({8, 16, 768, 1, false}, io), "serial");
    const auto why = explain_wkv_auto("wkv4", Device::kCuda, io, {1, 4096, 768, 1, false});
    EXPECT_NE(why.find("wkv4.cuda.scan."), std::string::npos) << why;
    EXPECT_NE(why.find("auto_table.h"), std::string::npos) << why;
  }
}
#endif

TEST(Wkv4Registry, HeadsTimesHeadSizeAreChannels) {
  for (const WkvKernel* k : all_wkv_kernels()) {
    if (k->op != "wkv4") continue;
    const WkvShape channels{2, 100, 96, 1, true}, heads{2, 100, 3, 32, true};
    EXPECT_EQ(k->saved_bytes(channels), k->saved_bytes(heads)) << k->name;
    EXPECT_EQ(k->workspace_bytes(channels), k->workspace_bytes(heads)) << k->name;
    EXPECT_EQ(wkv_misfit(*k, "wkv4", k->device, k->io, heads), "") << k->name;
  }
}

TEST(Wkv4Registry, ErrorsListEveryVariantOfTheOp) {
  const auto text = message_of<ConfigError>([] { choose({1, 16, 32, 1, false}, "chunk"); });
  for (const WkvKernel* k : all_wkv_kernels())
    EXPECT_EQ(text.find(k->name) != std::string::npos, k->op == "wkv4") << k->name << "\n" << text;
  EXPECT_NE(text.find("serial"), std::string::npos) << text;
}

TEST(Wkv4Registry, ListNamesBothOps) {
  const std::string list = list_wkv({1, 64, 768, 1, false});
  EXPECT_NE(list.find("wkv4.cpu.serial.f32"), std::string::npos);
  EXPECT_NE(list.find("head sizes any"), std::string::npos) << list;
  EXPECT_NE(list.find("wkv4 on cpu with f32 vectors: auto takes wkv4.cpu."), std::string::npos)
      << list;
  EXPECT_NE(list.find("wkv7 on cpu with f32 vectors: auto finds nothing"), std::string::npos)
      << list;
}

class Wkv4Infer : public testing::Test {
 protected:
  void SetUp() override {
    attrs_ = {&choose({2, 17, 48, 1, true}, "auto")};
    in_.assign(2, TensorSpec({2, 17, 48}));
    in_.insert(in_.end(), 3, TensorSpec({2, 48}));
    param_.assign(2, TensorSpec({48}));
  }
  ShapeCall infer() const {
    ShapeCall call;
    call.in = in_;
    call.param = param_;
    call.attrs = &attrs_;
    kWkv4.infer(call);
    return call;
  }
  template <class E>
  std::string refused() const {
    return message_of<E>([&] { infer(); });
  }
  Wkv4Attrs attrs_;
  std::vector<TensorSpec> in_, param_;
};

TEST_F(Wkv4Infer, SizesOutputs) {
  const ShapeCall with_state = infer();
  ASSERT_EQ(with_state.out.size(), 4u);
  EXPECT_EQ(with_state.out[0], in_[0]);
  for (size_t i = 1; i < 4; ++i) EXPECT_EQ(with_state.out[i], in_[2]);
  ASSERT_EQ(with_state.saved.size(), 1u);
  EXPECT_EQ(with_state.saved[0].bytes(), attrs_.kernel->saved_bytes({2, 17, 48, 1, true}));
  in_.resize(2);
  EXPECT_EQ(infer().out.size(), 1u);
}

TEST_F(Wkv4Infer, RefusesWhatDoesNotFit) {
  in_[1] = TensorSpec({2, 17, 47});
  EXPECT_NE(refused<ShapeError>().find("wkv4: v is (2, 17, 47) f32"), std::string::npos);
  SetUp();
  in_[4] = TensorSpec({2, 47});
  EXPECT_NE(refused<ShapeError>().find("p0 is (2, 47) f32"), std::string::npos);
  SetUp();
  in_.resize(4);
  EXPECT_NE(refused<ShapeError>().find("found 4 inputs"), std::string::npos);
  SetUp();
  param_[1] = TensorSpec({48}, DType::kBF16);
  EXPECT_NE(refused<ShapeError>().find("time_first is (48) bf16"), std::string::npos);
  SetUp();
  param_.pop_back();
  EXPECT_NE(refused<ShapeError>().find("found 1 parameters"), std::string::npos);
  SetUp();
  attrs_.kernel = nullptr;
  EXPECT_NE(refused<ConfigError>().find("no variant was chosen"), std::string::npos);
  SetUp();
  attrs_.kernel = all_wkv_kernels().front();
  EXPECT_NE(refused<ConfigError>().find("it computes wkv7, not wkv4"), std::string::npos);
}

}  // namespace
}  // namespace rwkv::test
