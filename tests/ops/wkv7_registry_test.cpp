// Choosing WKV variants, and the checks of the wkv7 op.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "kernels/wkv/registry.h"
#include "kernels/wkv/wkv.h"

namespace rwkv::test {
namespace {

const WkvKernel& choose(const WkvShape& shape, std::string_view wanted) {
  return select_wkv("wkv7", Device::kCpu, DType::kF32, shape, wanted);
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

TEST(WkvRegistry, NamesAreUniqueAndWellFormed) {
  std::set<std::string_view> names;
  for (const WkvKernel* k : all_wkv_kernels()) {
    EXPECT_TRUE(names.insert(k->name).second) << k->name;
    const std::string prefix = str(k->op, ".", device_name(k->device), ".", k->family);
    EXPECT_EQ(k->name.substr(0, prefix.size()), prefix);
    EXPECT_FALSE(k->note.empty()) << k->name;
    EXPECT_NE(k->forward, nullptr);
    EXPECT_NE(k->backward, nullptr);
    EXPECT_NE(k->step, nullptr);
  }
  EXPECT_GE(names.size(), 4u);
}

TEST(WkvRegistry, FullNamesFamiliesAndAuto) {
  const WkvShape shape{1, 512, 12, 64, false};
  for (const WkvKernel* k : all_wkv_kernels())
    EXPECT_EQ(&select_wkv(k->op, k->device, k->io, shape, k->name), k);
  EXPECT_EQ(choose(shape, "serial").family, "serial");
  EXPECT_EQ(choose(shape, "chunk").family, "chunk");
  for (const int64_t tokens : {1, 2, 15, 16, 17, 100, 512, 4096}) {
    for (const int64_t n : {32, 64, 128}) {
      const WkvShape s{1, tokens, 2, n, true};
      EXPECT_EQ(wkv_misfit(choose(s, "auto"), "wkv7", Device::kCpu, DType::kF32, s), "");
    }
  }
  EXPECT_EQ(choose({1, 1, 12, 64, true}, "auto").family, "serial");
  EXPECT_EQ(choose({1, 15, 12, 64, true}, "auto").family, "serial");
  EXPECT_EQ(choose({1, 512, 12, 64, false}, "auto").family, "chunk");
}

#if RWKV_HAVE_CUDA
TEST(WkvRegistry, AutoOnCuda) {
  const auto family = [](const WkvShape& shape, DType io) {
    return select_wkv("wkv7", Device::kCuda, io, shape, "auto").family;
  };
  for (const int64_t n : {32, 64, 128}) {
    EXPECT_EQ(family({1, 1, 12, n, true}, DType::kBF16), "chunk");
    EXPECT_EQ(family({1, 191, 12, n, false}, DType::kBF16), "chunk");
    EXPECT_EQ(family({1, 192, 12, n, false}, DType::kBF16), "scan");
    EXPECT_EQ(family({16, 512, 12, n, false}, DType::kBF16), "scan");
    EXPECT_EQ(family({17, 512, 12, n, false}, DType::kBF16), "chunk");
    EXPECT_EQ(family({8, 4096, 12, n, false}, DType::kBF16), "scan");
    EXPECT_EQ(family({30, 4096, 12, n, false}, DType::kBF16), "chunk");
    EXPECT_EQ(family({8, 4096, 12, n, false}, DType::kF32), "serial");
  }
  const WkvShape shape{1, 4096, 12, 64, false};
  const auto why = explain_wkv_auto("wkv7", Device::kCuda, DType::kBF16, shape);
  EXPECT_NE(why.find("wkv7.cuda.scan16.bf16"), std::string::npos) << why;
  EXPECT_NE(why.find("tools/records/"), std::string::npos) << why;
}
#endif

TEST(WkvRegistry, ErrorsListEveryVariantWithItsReason) {
  const auto text = message_of<ConfigError>([] { choose({1, 16, 2, 48, false}, "auto"); });
  for (const WkvKernel* k : all_wkv_kernels())
    EXPECT_EQ(text.find(k->name) != std::string::npos, k->op == "wkv7") << k->name << "\n" << text;
  EXPECT_NE(text.find("head size 48 is not one of 32/64/128"), std::string::npos) << text;

  const auto unknown = message_of<ConfigError>([] { choose({1, 16, 2, 64, false}, "fastest"); });
  EXPECT_NE(unknown.find("'fastest'"), std::string::npos) << unknown;
  for (const WkvKernel* k : all_wkv_kernels())
    EXPECT_EQ(unknown.find(k->name) != std::string::npos, k->op == "wkv7") << k->name << unknown;
  EXPECT_EQ(unknown.find('\n'), std::string::npos) << unknown;

  const auto dtype = message_of<ConfigError>([] {
    select_wkv("wkv7", Device::kCpu, DType::kBF16, {1, 16, 2, 64, false}, "serial");
  });
  EXPECT_NE(dtype.find("its vectors are f32, not bf16"), std::string::npos) << dtype;
}

TEST(WkvRegistry, ListSaysWhatFits) {
  const std::string fits = list_wkv({1, 64, 2, 64, false});
  EXPECT_NE(fits.find("wkv7.cpu.serial.f32"), std::string::npos);
  EXPECT_EQ(fits.find("does not fit"), std::string::npos) << fits;
  EXPECT_NE(list_wkv({1, 16, 2, 48, false}).find("does not fit"), std::string::npos);
}

class Wkv7Infer : public testing::Test {
 protected:
  void SetUp() override {
    attrs_ = {64, &choose({2, 17, 3, 64, true}, "auto")};
    specs_.assign(6, TensorSpec({2, 17, 192}));
    specs_.push_back(TensorSpec({2, 3, 64, 64}));
  }
  ShapeCall infer() const {
    ShapeCall call;
    call.in = specs_;
    call.attrs = &attrs_;
    kWkv7.infer(call);
    return call;
  }
  template <class E>
  std::string refused() const {
    return message_of<E>([&] { infer(); });
  }
  Wkv7Attrs attrs_;
  std::vector<TensorSpec> specs_;
};

TEST_F(Wkv7Infer, SizesOutputs) {
  const ShapeCall with_state = infer();
  ASSERT_EQ(with_state.out.size(), 2u);
  EXPECT_EQ(with_state.out[0], specs_[0]);
  EXPECT_EQ(with_state.out[1], specs_[6]);
  ASSERT_EQ(with_state.saved.size(), 1u);
  EXPECT_EQ(with_state.saved[0].bytes(), attrs_.kernel->saved_bytes({2, 17, 3, 64, true}));
  specs_.pop_back();
  EXPECT_EQ(infer().out.size(), 1u);
}

TEST_F(Wkv7Infer, RefusesWhatDoesNotFit) {
  specs_[2] = TensorSpec({2, 17, 128});
  EXPECT_NE(refused<ShapeError>().find("wkv7: k is (2, 17, 128) f32"), std::string::npos);
  SetUp();
  specs_[6] = TensorSpec({2, 3, 64, 32});
  EXPECT_NE(refused<ShapeError>().find("s0 is (2, 3, 64, 32) f32"), std::string::npos);
  SetUp();
  specs_.resize(5);
  EXPECT_NE(refused<ShapeError>().find("found 5 inputs"), std::string::npos);
  SetUp();
  attrs_.head_size = 80;
  EXPECT_NE(refused<ShapeError>().find("not a whole number of heads of size 80"),
            std::string::npos);
  SetUp();
  attrs_.kernel = nullptr;
  EXPECT_NE(refused<ConfigError>().find("no variant was chosen"), std::string::npos);
  SetUp();
  for (TensorSpec& spec : specs_) spec.dtype = DType::kBF16;
  specs_.pop_back();
  EXPECT_NE(refused<ConfigError>().find("not bf16"), std::string::npos);
}

}  // namespace
}  // namespace rwkv::test
