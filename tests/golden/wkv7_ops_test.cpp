// wkv7_ops.h5: every WKV-7 variant of this build for the device under test on every case of the
// file, and the key normalisation through key_prepare. Limits: tests/golden/README.md, the column
// of the variant.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "data/io/hdf5_file.h"
#include "kernels/ops/key_prepare.h"
#include "tests/ops/wkv7_harness.h"

namespace rwkv::test {
namespace {

std::string golden_file() {
  const char* dir = std::getenv("RWKV_GOLDEN_DIR");
  return std::string(dir != nullptr && *dir != '\0' ? dir : RWKV_SOURCE_DIR "/tests/golden") +
         "/wkv7_ops.h5";
}

// Cases are called KIND_tT or tT; exceptions go by KIND.
bool is_kind(const std::string& name, const std::string& kind) {
  return name.rfind(kind, 0) == 0;
}

testing::AssertionResult within(const std::string& what, double error, double limit) {
  if (error <= limit) return testing::AssertionSuccess();
  return testing::AssertionFailure() << what << ": error " << error << ", limit " << limit;
}

// d log(decay) / d w_logit
double logit_factor(double w_logit) {
  const double up = std::exp(-w_logit);
  return -ref::kWkv7DecayScale * up / ((1 + up) * (1 + up));
}

/// `compared` counts the cases whose shape the variant can run, `worst` has the largest errors.
void check_case(const Hdf5File& file, const std::string& name, const WkvKernel& kernel,
                int& compared, std::map<std::string, double>& worst) {
  SCOPED_TRACE(name);
  const auto size = [&](const char* key) {
    return file.read_scalar<int64_t>(name + "/size/" + key);
  };
  const WkvShape s{size("B"), size("T"), size("H"), size("N"), size("has_state") != 0};
  if (!wkv_misfit(kernel, "wkv7", kernel.device, kernel.io, s).empty()) return;
  ++compared;
  const Shape vec{s.batch, s.tokens, s.heads, s.head_size};
  const Shape state{s.batch, s.heads, s.head_size, s.head_size};
  const auto input = [&](const char* key, const Shape& shape) {
    std::vector<float> x(static_cast<size_t>(shape_numel(shape)));
    file.read_into<float>(name + "/" + key, shape, x);
    return x;
  };
  Wkv7Data d;
  d.r = input("r", vec);
  d.w_logit = input("w_logit", vec);
  d.k = input("k", vec);
  d.v = input("v", vec);
  d.a = input("a", vec);
  d.b = input("b", vec);
  d.dy = input("dy", vec);
  if (s.has_state) {
    d.s0 = input("s0", state);
    d.ds_out = input("ds_out", state);
  }
  const Wkv7Result got = run_wkv7(kernel, s, d);
  const auto want = [&](const std::string& key) { return file.read<double>(name + "/" + key); };

  const Wkv7Limits limits = limits_of(kernel);
  const auto check = [&](const char* what, const std::vector<float>& x, double limit) {
    const double error = relative_error(x, want(what));
    worst[what] = std::max(worst[what], error);
    EXPECT_TRUE(within(what, error, limit));
  };
  check("y", got.y, limits.y);
  if (s.has_state) {
    check("s_out", got.s_out, limits.s_out);
    check("ds0", got.grad[6], limits.grad[6]);
  }
  for (const size_t i : {0u, 2u, 3u, 4u, 5u}) check(kWkv7Names[i], got.grad[i], limits.grad[i]);

  // dlog_w is recovered from dw_logit wherever that has not left the range of fp32.
  const std::vector<double> dw_logit = want("dw_logit"), dlog_w = want("dlog_w");
  std::vector<double> recovered, expected;
  double largest = 0, farthest = 0;
  for (size_t i = 0; i < dlog_w.size(); ++i) {
    largest = std::max(largest, std::abs(dlog_w[i]));
    const double error = std::abs(static_cast<double>(got.grad[1][i]) - dw_logit[i]);
    if (!(error <= farthest)) farthest = error;
    if (std::abs(d.w_logit[i]) > 40) continue;
    recovered.push_back(static_cast<double>(got.grad[1][i]) /
                        logit_factor(static_cast<double>(d.w_logit[i])));
    expected.push_back(dlog_w[i]);
  }
  const double error = relative_error(recovered, expected);
  worst["dlog_w"] = std::max(worst["dlog_w"], error);
  EXPECT_TRUE(within("dlog_w", error, limits.grad[1]));
  if (is_kind(name, "floor"))
    EXPECT_TRUE(within("dw_logit, absolute", farthest, 1e-6 * largest));
  else
    check("dw_logit", got.grad[1], limits.grad[1]);
}

class Wkv7Golden : public testing::TestWithParam<const WkvKernel*> {};

TEST_P(Wkv7Golden, EveryCase) {
  RWKV_NEED_TEST_DEVICE();
  const Hdf5File file = Hdf5File::open(golden_file());
  int cases = 0, compared = 0;
  std::map<std::string, double> worst;
  for (const std::string& name : file.list()) {
    if (!file.exists(name + "/size")) continue;  // not an operator case
    check_case(file, name, *GetParam(), compared, worst);
    ++cases;
  }
  EXPECT_GT(cases, 0) << golden_file() << " holds no operator case";
  if (compared == 0 && GetParam()->min_tokens > 1)
    GTEST_SKIP() << "every case has fewer than " << GetParam()->min_tokens << " tokens";
  EXPECT_GT(compared, 0) << GetParam()->name << " fits no case of " << golden_file();
  std::printf("%s, largest errors of %d cases:", std::string(GetParam()->name).c_str(), compared);
  for (const auto& [what, error] : worst) std::printf(" %s %.1e", what.c_str(), error);
  std::printf("\n");
}

INSTANTIATE_TEST_SUITE_P(Device, Wkv7Golden, testing::ValuesIn(test_variants()), variant_name);

// With k_k = 1, k_a = 0 and no gradient at k and b, key_prepare is the normalisation alone:
// a = -z, and the gradient of k0 is du for da = -dz.
TEST(KeyNormGolden, EveryRow) {
  RWKV_NEED_TEST_DEVICE();
  const Hdf5File file = Hdf5File::open(golden_file());
  const Shape shape = file.shape("keynorm/u");
  const int64_t rows = shape.at(0), n = shape.at(1);
  const auto width = static_cast<size_t>(n);
  const std::vector<float> u = file.read<float>("keynorm/u");
  std::vector<float> da = file.read<float>("keynorm/dz");
  for (float& x : da) x = -x;
  const std::vector<double> z = file.read<double>("keynorm/z"),
                            du = file.read<double>("keynorm/du");

  const TensorSpec vec({1, rows, n}), param({1, 1, n});
  const KeyPrepareAttrs attrs{n};
  const std::vector<TensorSpec> in_specs(2, vec), param_specs(2, param);
  ShapeCall sizes;
  sizes.in = in_specs;
  sizes.param = param_specs;
  sizes.attrs = &attrs;
  kKeyPrepare.infer(sizes);
  Context ctx(kTestDevice);
  ctx.reserve_workspace(sizes.workspace_bytes);
  DeviceImage image(ctx);
  const size_t in_u = image.add_values(vec, u), logit = image.add(vec, 0);
  const size_t ones = image.add(param, 1), zeros = image.add(param, 0);
  const size_t k = image.add(vec), a = image.add(vec), b = image.add(vec);
  const size_t none = image.add(vec, 0), in_da = image.add_values(vec, da);
  const size_t dk0 = image.add(vec), dlogit = image.add(vec);
  std::vector<size_t> saved;
  for (const TensorSpec& spec : sizes.saved) saved.push_back(image.add(spec));
  image.send();
  const auto views = [&](const std::vector<size_t>& at) {
    std::vector<TensorView> v;
    for (const size_t i : at) v.push_back(image.view(i));
    return v;
  };
  const std::vector<TensorView> in = views({in_u, logit}), params = views({ones, zeros}),
                                out = views({k, a, b}), saved_views = views(saved);
  OpCall call;
  call.in = in;
  call.param = params;
  call.out = out;
  call.saved = saved_views;
  call.attrs = &attrs;
  run_forward(ctx, kKeyPrepare, call);

  const std::vector<TensorView> dout = views({none, in_da, none}), din = views({dk0, dlogit}),
                                dparam(2);
  const std::vector<Accum> write(2, Accum::kWrite), skip(2, Accum::kSkip);
  call.dout = dout;
  call.din = din;
  call.din_mode = write;
  call.dparam = dparam;
  call.dparam_mode = skip;
  run_backward(ctx, kKeyPrepare, call);
  image.fetch();
  EXPECT_TRUE(image.intact());

  const std::vector<float> got_a = image.values(a), got_du = image.values(dk0);
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
    std::vector<double> gz, gdu, wz, wdu;
    for (size_t i = row * width; i < (row + 1) * width; ++i) {
      gz.push_back(-static_cast<double>(got_a[i]));
      gdu.push_back(static_cast<double>(got_du[i]));
      wz.push_back(z[i]);
      wdu.push_back(du[i]);
    }
    EXPECT_TRUE(within(str("z, row ", row), relative_error(gz, wz), 2e-6));
    EXPECT_TRUE(within(str("du, row ", row), relative_error(gdu, wdu), 2e-6));
  }
}

}  // namespace
}  // namespace rwkv::test
