// wkv7_ops.h5: every WKV-7 variant of this build on every case of the file, and the key
// normalisation through key_prepare. Limits: tests/golden/README.md, column f32.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
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

/// `compared` counts the cases whose shape the variant can run.
void check_case(const Hdf5File& file, const std::string& name, const WkvKernel& kernel,
                int& compared) {
  SCOPED_TRACE(name);
  const auto size = [&](const char* key) {
    return file.read_scalar<int64_t>(name + "/size/" + key);
  };
  const WkvShape s{size("B"), size("T"), size("H"), size("N"), size("has_state") != 0};
  if (!wkv_misfit(kernel, "wkv7", Device::kCpu, DType::kF32, s).empty()) return;
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

  EXPECT_TRUE(within("y", relative_error(got.y, want("y")), 5e-6));
  if (s.has_state) {
    EXPECT_TRUE(within("s_out", relative_error(got.s_out, want("s_out")), 5e-6));
    EXPECT_TRUE(within("ds0", relative_error(got.grad[6], want("ds0")), 5e-6));
  }
  for (const size_t i : {0u, 2u, 3u, 4u, 5u})
    EXPECT_TRUE(within(kWkv7Names[i], relative_error(got.grad[i], want(kWkv7Names[i])), 5e-6));

  // dlog_w is recovered from dw_logit wherever that has not left the range of fp32.
  const std::vector<double> dw_logit = want("dw_logit"), dlog_w = want("dlog_w");
  std::vector<double> recovered, expected;
  double largest = 0, worst = 0;
  for (size_t i = 0; i < dlog_w.size(); ++i) {
    largest = std::max(largest, std::abs(dlog_w[i]));
    const double error = std::abs(static_cast<double>(got.grad[1][i]) - dw_logit[i]);
    if (!(error <= worst)) worst = error;
    if (std::abs(d.w_logit[i]) > 40) continue;
    recovered.push_back(static_cast<double>(got.grad[1][i]) /
                        logit_factor(static_cast<double>(d.w_logit[i])));
    expected.push_back(dlog_w[i]);
  }
  EXPECT_TRUE(within("dlog_w", relative_error(recovered, expected), 1e-5));
  if (is_kind(name, "floor"))
    EXPECT_TRUE(within("dw_logit, absolute", worst, 1e-6 * largest));
  else
    EXPECT_TRUE(within("dw_logit", relative_error(got.grad[1], dw_logit), 1e-5));
}

class Wkv7Golden : public testing::TestWithParam<const WkvKernel*> {};

TEST_P(Wkv7Golden, EveryCase) {
  const Hdf5File file = Hdf5File::open(golden_file());
  int cases = 0, compared = 0;
  for (const std::string& name : file.list()) {
    if (!file.exists(name + "/size")) continue;  // not an operator case
    check_case(file, name, *GetParam(), compared);
    ++cases;
  }
  EXPECT_GT(cases, 0) << golden_file() << " holds no operator case";
  EXPECT_GT(compared, 0) << GetParam()->name << " fits no case of " << golden_file();
}

std::vector<const WkvKernel*> cpu_variants() {
  std::vector<const WkvKernel*> found;
  for (const WkvKernel* k : all_wkv_kernels())
    if (k->op == "wkv7" && k->device == Device::kCpu) found.push_back(k);
  return found;
}

INSTANTIATE_TEST_SUITE_P(Cpu, Wkv7Golden, testing::ValuesIn(cpu_variants()), [](const auto& p) {
  std::string name(p.param->name);
  for (char& ch : name)
    if (ch == '.') ch = '_';
  return name;
});

// With k_k = 1, k_a = 0 and no gradient at k and b, key_prepare is the normalisation alone:
// a = -z, and the gradient of k0 is du for da = -dz.
TEST(KeyNormGolden, EveryRow) {
  const Hdf5File file = Hdf5File::open(golden_file());
  const Shape shape = file.shape("keynorm/u");
  const int64_t rows = shape.at(0), n = shape.at(1);
  const auto count = static_cast<size_t>(rows * n), width = static_cast<size_t>(n);
  std::vector<float> u = file.read<float>("keynorm/u"), dz = file.read<float>("keynorm/dz");
  const std::vector<double> z = file.read<double>("keynorm/z"),
                            du = file.read<double>("keynorm/du");
  std::vector<float> logit(count, 0.0f), ones(width, 1.0f), zeros(width, 0.0f), none(count, 0.0f),
      da(count);
  for (size_t i = 0; i < count; ++i) da[i] = -dz[i];

  const TensorSpec vec({1, rows, n}), param({1, 1, n});
  const KeyPrepareAttrs attrs{n};
  const std::vector<TensorSpec> in_specs(2, vec), param_specs(2, param);
  ShapeCall sizes;
  sizes.in = in_specs;
  sizes.param = param_specs;
  sizes.attrs = &attrs;
  kKeyPrepare.infer(sizes);
  Context ctx;
  ctx.reserve_workspace(sizes.workspace_bytes);
  Guarded k(count), a(count), b(count), dk0(count), dlogit(count);
  const std::vector<TensorView> in{{u.data(), vec}, {logit.data(), vec}};
  const std::vector<TensorView> params{{ones.data(), param}, {zeros.data(), param}};
  const std::vector<TensorView> out{{k.data(), vec}, {a.data(), vec}, {b.data(), vec}};
  std::vector<Guarded> saved;
  for (const TensorSpec& spec : sizes.saved) saved.emplace_back(static_cast<size_t>(spec.numel()));
  std::vector<TensorView> saved_views;
  for (size_t i = 0; i < saved.size(); ++i)
    saved_views.emplace_back(saved[i].data(), sizes.saved[i]);
  OpCall call;
  call.in = in;
  call.param = params;
  call.out = out;
  call.saved = saved_views;
  call.attrs = &attrs;
  run_forward(ctx, kKeyPrepare, call);

  const std::vector<TensorView> dout{{none.data(), vec}, {da.data(), vec}, {none.data(), vec}};
  const std::vector<TensorView> din{{dk0.data(), vec}, {dlogit.data(), vec}}, dparam(2);
  const std::vector<Accum> write(2, Accum::kWrite), skip(2, Accum::kSkip);
  call.dout = dout;
  call.din = din;
  call.din_mode = write;
  call.dparam = dparam;
  call.dparam_mode = skip;
  run_backward(ctx, kKeyPrepare, call);

  const std::vector<float> got_a = a.values(), got_du = dk0.values();
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
