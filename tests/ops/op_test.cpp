// Every op on every case: the double reference against the complex step, the f32 CPU kernels
// against the double reference in all three gradient modes, and bit-equality over threads and
// addresses.

#include <cctype>
#include <set>

#include "tests/ops/op_harness.h"

namespace rwkv::test {
namespace {

constexpr uint64_t kSeed = 20250424;

const std::vector<cases::OpCase>& test_cases() {
  static const auto list = [] {
    std::vector<cases::OpCase> keep;
    for (const auto& c : cases::all_cases())
      if (c.use == cases::Use::kTest) keep.push_back(c);
    return keep;
  }();
  return list;
}

class Ops : public testing::TestWithParam<size_t> {
 protected:
  const cases::OpCase& op_case() const { return test_cases()[GetParam()]; }
};

std::string case_name(const testing::TestParamInfo<size_t>& info) {
  std::string name = test_cases()[info.param].name;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Case, Ops, testing::Range<size_t>(0, test_cases().size()), case_name);

/// The double reference of all gradients, inputs first.
std::vector<std::vector<double>> reference_gradients(OpRun& run) {
  auto c = reference_operands<double>(run);
  ref::reference_of<double>(run.op_case().op->name).backward(c);
  std::vector<std::vector<double>> g = std::move(c.din);
  for (auto& d : c.dparam) g.push_back(std::move(d));
  return g;
}

// The differentiated function: sum of out * dout, plus the function behind L2Wrap's gradient.
std::complex<double> objective(ref::RefCall<std::complex<double>>& c, const Op& op) {
  ref::reference_of<std::complex<double>>(op.name).forward(c);
  std::complex<double> sum{};
  for (size_t o = 0; o < c.out.size(); ++o)
    for (size_t i = 0; i < c.out[o].size(); ++i) sum += c.out[o][i] * c.dout[o][i];
  if (op.name == "linear_cross_entropy" && c.attr<LinearCrossEntropyAttrs>().l2wrap)
    sum += c.dout[0][0] * ref::l2wrap_potential(c);
  return sum;
}

TEST_P(Ops, ReferenceBackwardMatchesComplexStep) {
  constexpr double kStep = 1e-40;
  OpRun run(op_case(), kSeed);
  const auto gradients = reference_gradients(run);
  auto c = reference_operands<std::complex<double>>(run);
  const Op& op = *op_case().op;
  const size_t inputs = c.in.size();
  const int samples = op_case().forward_flops() > 2e5 ? 3 : 16;
  for (size_t g = 0; g < gradients.size(); ++g) {
    auto& x = g < inputs ? c.in[g] : c.param[g - inputs];
    if (x.empty()) continue;
    const auto& want = gradients[g];
    const auto width =
        static_cast<size_t>((g < inputs ? c.in_spec[g] : c.param_spec[g - inputs]).last());
    const Rng rng(kSeed, hash_name("complex step"), g);
    for (int s = 0; s < samples; ++s) {
      const auto i = static_cast<size_t>(rng.below(static_cast<uint64_t>(s), x.size()));
      x[i] += std::complex<double>(0, kStep);
      const double got = objective(c, op).imag() / kStep;
      x[i] = x[i].real();
      double scale = 0;  // the largest gradient of the element's row
      for (size_t j = i / width * width; j < (i / width + 1) * width; ++j)
        scale = std::max(scale, std::fabs(want[j]));
      EXPECT_LE(std::fabs(got - want[i]), 1e-11 * scale)
          << run.grad_name[g] << "[" << i << "]: complex step " << got << ", backward " << want[i];
    }
    // All elements at once, along a random direction.
    double along = 0, scale = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double d = rng.normal(1000 + i);
      x[i] += std::complex<double>(0, kStep * d);
      along += d * want[i];
      scale += std::fabs(d * want[i]);
    }
    EXPECT_LE(std::fabs(objective(c, op).imag() / kStep - along), 1e-11 * scale)
        << run.grad_name[g] << " along a random direction";
    for (auto& v : x) v = v.real();
  }
}

TEST_P(Ops, ForwardMatchesReference) {
  for (const uint64_t seed : {kSeed, kSeed + 1}) {
    OpRun run(op_case(), seed);
    auto c = reference_operands<double>(run);
    run.forward();
    EXPECT_TRUE(run.guards_intact());
    const auto after = reference_operands<double>(run);
    EXPECT_EQ(after.in, c.in);
    EXPECT_EQ(after.param, c.param);
    ref::reference_of<double>(op_case().op->name).forward(c);
    for (size_t o = 0; o < run.out.size(); ++o)
      EXPECT_TRUE(matches(std::span<const float>(run.out[o].f32()),
                          std::span<const double>(c.out[o]), tolerance(op_case().forward),
                          where(run, str("output ", o), run.out[o].spec())));
  }
}

TEST_P(Ops, BackwardMatchesReferenceWritingAndAdding) {
  for (const uint64_t seed : {kSeed, kSeed + 1}) {
    OpRun run(op_case(), seed);
    const auto want = reference_gradients(run);
    run.resemble = want;
    for (const Accum mode : {Accum::kWrite, Accum::kAdd}) {
      run.forward();
      run.backward(run.all(mode));
      EXPECT_TRUE(run.guards_intact());
      for (size_t g = 0; g < want.size(); ++g) {
        if (want[g].empty()) continue;
        auto expected = want[g];
        if (mode == Accum::kAdd)
          for (size_t i = 0; i < expected.size(); ++i)
            expected[i] += static_cast<double>(run.content[g][i]);
        EXPECT_TRUE(matches(std::span<const float>(run.grad[g].f32()),
                            std::span<const double>(expected), tolerance(op_case().backward),
                            where(run, run.grad_name[g] + (mode == Accum::kAdd ? " added" : ""),
                                  run.grad[g].spec())));
      }
    }
  }
}

TEST_P(Ops, EachGradientAloneIsTheSame) {
  OpRun run(op_case(), kSeed);
  run.forward();
  run.backward(run.all(Accum::kWrite));
  auto together = std::move(run.grad);
  const auto modes = run.all(Accum::kWrite);
  for (size_t g = 0; g < modes.size(); ++g) {
    if (modes[g] == Accum::kSkip) continue;
    std::vector<Accum> alone(modes.size(), Accum::kSkip);
    alone[g] = Accum::kWrite;
    run.forward();
    run.backward(alone);
    EXPECT_TRUE(run.guards_intact());
    EXPECT_TRUE(bit_equal(std::span<const float>(run.grad[g].f32()),
                          std::span<const float>(together[g].f32()),
                          op_case().name + " " + run.grad_name[g] + " alone"));
  }
}

TEST_P(Ops, SkippedGradientsAreNotTouched) {
  // The views are there, but the modes say kSkip.
  OpRun run(op_case(), kSeed);
  run.forward();
  run.backward(run.all(Accum::kAdd));  // makes buffers with known content
  auto before = run.content;
  std::vector<TensorView> din, dparam, dout, in, param, saved;
  for (size_t g = 0; g < run.grad.size(); ++g) {
    before[g].assign(run.grad[g].f32().begin(), run.grad[g].f32().end());
    (g < run.in.size() ? din : dparam).push_back(run.grad[g].view());
  }
  for (auto& b : run.dout) dout.push_back(b.view());
  for (auto& b : run.in) in.push_back(b.view());
  for (auto& b : run.param) param.push_back(b.view());
  for (auto& b : run.saved) saved.push_back(b.view());
  const std::vector<Accum> skip(6, Accum::kSkip);
  Context ctx;
  ctx.reserve_workspace(op_case().infer().workspace_bytes);
  run_backward(ctx, *op_case().op,
               {.in = in,
                .param = param,
                .saved = saved,
                .dout = dout,
                .din = din,
                .dparam = dparam,
                .din_mode = std::span(skip).first(din.size()),
                .dparam_mode = std::span(skip).first(dparam.size()),
                .attrs = op_case().attrs.get()});
  for (size_t g = 0; g < run.grad.size(); ++g) {
    if (run.grad[g].spec().dtype != DType::kF32) continue;
    EXPECT_TRUE(bit_equal(std::span<const float>(run.grad[g].f32()),
                          std::span<const float>(before[g]), run.grad_name[g] + " skipped"));
  }
}

TEST_P(Ops, ThreadsAndAddressesDoNotMatter) {
  std::vector<GuardedBuffer> out, grad;
  for (const int threads : {1, 2, 3}) {
    const ThreadCount scope(threads);
    for (const size_t misalign : {size_t{0}, size_t{3}}) {
      OpRun run(op_case(), kSeed, misalign);
      run.forward();
      auto results = std::move(run.out);
      run.out.clear();
      run.backward(run.all(Accum::kWrite));
      if (out.empty()) {
        out = std::move(results);
        grad = std::move(run.grad);
        continue;
      }
      const std::string with = str(" with ", threads, " threads, misaligned by ", misalign);
      for (size_t o = 0; o < out.size(); ++o)
        EXPECT_TRUE(bit_equal(std::span<const float>(results[o].f32()),
                              std::span<const float>(out[o].f32()), str("output ", o, with)));
      for (size_t g = 0; g < grad.size(); ++g) {
        if (grad[g].spec().dtype != DType::kF32) continue;
        EXPECT_TRUE(bit_equal(std::span<const float>(run.grad[g].f32()),
                              std::span<const float>(grad[g].f32()), run.grad_name[g] + with));
      }
    }
  }
}

TEST(OpTable, EveryOpHasKernelsAReferenceAndCases) {
  std::set<std::string_view> names, with_cases;
  for (const auto& c : cases::all_cases()) with_cases.insert(c.op->name);
  for (const Op* op : all_ops()) {
    EXPECT_TRUE(names.insert(op->name).second) << op->name << " twice";
    EXPECT_EQ(&find_op(op->name), op);
    EXPECT_NE(op->infer, nullptr) << op->name;
    EXPECT_NE(op->forward[0], nullptr) << op->name;
    EXPECT_NE(op->backward[0], nullptr) << op->name;
    if (op->name == "wkv7" || op->name == "wkv4") continue;  // tests of their own
    EXPECT_NE(ref::reference_of<double>(op->name).forward, nullptr) << op->name;
    EXPECT_TRUE(with_cases.count(op->name)) << op->name;
  }
  EXPECT_GE(names.size(), 12u);
  EXPECT_THROW(find_op("no such op"), ConfigError);
}

TEST(OpTable, CasesHaveUniqueNamesAndCostsAddUp) {
  std::set<std::string> names;
  for (const auto& c : cases::all_cases()) {
    EXPECT_TRUE(names.insert(c.name).second) << c.name << " twice";
    EXPECT_EQ(c.name.rfind(std::string(c.op->name) + "/", 0), 0u) << c.name;
    EXPECT_GT(c.forward_bytes(), 0) << c.name;
    EXPECT_GT(c.backward_bytes(), 0) << c.name;
    EXPECT_GE(c.backward_flops(), c.forward_flops()) << c.name;
  }
}

TEST(OpTable, MissingKernelNamesOpAndDevice) {
  const Op op{.name = "nothing",
              .infer = nullptr,
              .backward_reads_in = 0,
              .backward_reads_out = 0,
              .forward = {},
              .backward = {}};
  Context ctx;
  try {
    run_forward(ctx, op, {});
    FAIL() << "no exception";
  } catch (const DeviceError& e) {
    EXPECT_STREQ(e.what(), "op nothing has no cpu forward kernel in this build");
  }
}

}  // namespace
}  // namespace rwkv::test
