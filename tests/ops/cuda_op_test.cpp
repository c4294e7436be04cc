// Every op with CUDA kernels on every test case, in f32 and in bf16: against the double reference
// in all gradient modes, bit-equality of reruns and of gradients computed alone, addresses off
// their alignment, and ids out of range; AdamW and the global norm against a double computation.
// Skipped without a GPU.
//
// f32 results keep the case's own limits. bf16 results may be off by twice what a plain bf16
// computation of the same op is off (tests/ops/bf16_naive.h), plus one rounding.

#include <cctype>
#include <cmath>
#include <limits>

#include "kernels/core/bf16.h"
#include "kernels/core/launch_graph.h"
#include "kernels/core/memory.h"
#include "kernels/ops/adamw.h"
#include "kernels/ops/feed_forward.h"
#include "tests/ops/bf16_naive.h"
#include "tests/ops/cuda_harness.h"
#include "tests/support/compare.h"
#include "tests/support/device_image.h"

namespace rwkv::test {
namespace {

constexpr uint64_t kSeed = 20250424;
constexpr double kRounding = 1.0 / 512;  // half a unit of the last place of bf16

const std::vector<cases::OpCase>& test_cases() {
  static const auto list = [] {
    std::vector<cases::OpCase> keep;
    for (const auto& c : cases::all_cases())
      if (c.use == cases::Use::kTest && c.op->forward[1] != nullptr) {
        keep.push_back(c);
        keep.push_back(cases::in_bf16(c));
      }
    return keep;
  }();
  return list;
}

bool is_bf16(const cases::OpCase& c) {
  return c.name.ends_with("_bf16");
}

class CudaOps : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    static const bool gpu = have_gpu();
    if (!gpu) GTEST_SKIP() << "no GPU";
  }
  static Context& context() {
    static Context ctx(Device::kCuda);
    return ctx;
  }
  const cases::OpCase& op_case() const { return test_cases()[GetParam()]; }
};

std::string case_name(const testing::TestParamInfo<size_t>& info) {
  std::string name = test_cases()[info.param].name;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Case, CudaOps, testing::Range<size_t>(0, test_cases().size()), case_name);

/// Outputs and gradients of the double reference and, in bf16, of the plain bf16 computation.
struct Expected {
  explicit Expected(const CudaRun& run) : exact(run.operands()), naive_run(run.operands()) {
    const auto reference = ref::reference_of<double>(run.op_case().op->name);
    reference.forward(exact);
    reference.backward(exact);
    if (is_bf16(run.op_case())) naive(run.op_case().op->name, naive_run);
  }
  static std::vector<std::vector<double>> gradients(const ref::RefCall<double>& c) {
    auto all = c.din;
    all.insert(all.end(), c.dparam.begin(), c.dparam.end());
    return all;
  }
  ref::RefCall<double> exact, naive_run;
};

testing::AssertionResult close(const CudaRun& run, const std::string& what, const TensorSpec& spec,
                               const std::vector<double>& got, const std::vector<double>& want,
                               const std::vector<double>& plain, const cases::Limits& limits) {
  const CompareOptions where{
      .what = run.op_case().name + " " + what, .row_length = spec.last(), .seed = run.seed()};
  Tolerance tol{limits.element, limits.row, limits.rel};
  if (is_bf16(run.op_case())) {
    std::vector<double> rounded = plain;
    if (spec.dtype == DType::kBF16)
      for (double& x : rounded) x = round_bf16(x);
    const Difference d =
        measure(std::span<const double>(rounded), std::span<const double>(want), where);
    // f32 results may be off a little more than in f32 runs: fast exponentials.
    const double slack = spec.dtype == DType::kBF16 ? kRounding : std::ldexp(1.0, -14);
    tol.element += 2 * d.element + slack;
    tol.row += 2 * d.row + slack;
    tol.rel += 2 * d.rel + slack;
  }
  return matches(std::span<const double>(got), std::span<const double>(want), tol, where);
}

void expect_results(const CudaRun& run, const Expected& expected,
                    const std::vector<std::vector<double>>& content) {
  EXPECT_TRUE(run.guards_intact());
  const cases::OpCase& c = run.op_case();
  for (size_t o = 0; o < run.count(CudaRun::kOut); ++o) {
    cases::Limits limits = c.forward;
    EXPECT_TRUE(close(run, str("output ", o), run.spec(CudaRun::kOut, o),
                      run.values(CudaRun::kOut, o), expected.exact.out[o],
                      expected.naive_run.out[o], limits));
  }
  auto want = Expected::gradients(expected.exact), plain = Expected::gradients(expected.naive_run);
  for (size_t g = 0; g < want.size(); ++g) {
    if (want[g].empty()) continue;
    if (!content.empty())
      for (size_t i = 0; i < want[g].size(); ++i) {
        want[g][i] += content[g][i];
        plain[g][i] += content[g][i];
      }
    EXPECT_TRUE(close(run, str("gradient ", g, content.empty() ? "" : " added"),
                      run.spec(CudaRun::kGrad, g), run.values(CudaRun::kGrad, g), want[g], plain[g],
                      c.backward));
  }
}

/// What kAdd starts from: of the gradients' size and sign, so that nothing cancels; representable.
std::vector<std::vector<double>> start_content(const CudaRun& run, const Expected& expected) {
  auto content = Expected::gradients(expected.exact);
  for (size_t g = 0; g < content.size(); ++g) {
    const Rng rng(run.seed(), hash_name("content"), g);
    for (size_t i = 0; i < content[g].size(); ++i) {
      const double x = content[g][i] * std::fabs(rng.normal(i));
      content[g][i] = run.spec(CudaRun::kGrad, g).dtype == DType::kBF16
                          ? round_bf16(x)
                          : static_cast<double>(static_cast<float>(x));
    }
  }
  return content;
}

TEST_P(CudaOps, MatchReferenceWritingAndAdding) {
  for (const uint64_t seed : {kSeed, kSeed + 1}) {
    CudaRun run(context(), op_case(), seed);
    const Expected expected(run);
    run.run(run.all(Accum::kWrite));
    expect_results(run, expected, {});
    const auto content = start_content(run, expected);
    run.run(run.all(Accum::kAdd), content);
    expect_results(run, expected, content);
  }
}

TEST_P(CudaOps, RerunsAndLoneGradientsAreBitEqual) {
  CudaRun run(context(), op_case(), kSeed);
  const auto modes = run.all(Accum::kWrite);
  run.run(modes);
  const auto collect = [&](CudaRun::Kind kind) {
    std::vector<std::vector<uint8_t>> list;
    for (size_t i = 0; i < run.count(kind); ++i) list.push_back(run.bytes(kind, i));
    return list;
  };
  const auto out = collect(CudaRun::kOut), grad = collect(CudaRun::kGrad);
  run.run(modes);
  EXPECT_EQ(collect(CudaRun::kOut), out);
  EXPECT_EQ(collect(CudaRun::kGrad), grad);
  for (size_t g = 0; g < modes.size(); ++g) {
    if (modes[g] == Accum::kSkip) continue;
    std::vector<Accum> alone(modes.size(), Accum::kSkip);
    alone[g] = Accum::kWrite;
    run.run(alone);
    EXPECT_TRUE(run.guards_intact());
    for (size_t k = 0; k < modes.size(); ++k) {
      if (k == g) {
        EXPECT_EQ(run.bytes(CudaRun::kGrad, k), grad[k]) << op_case().name << " gradient " << g;
        continue;
      }
      for (const uint8_t b : run.bytes(CudaRun::kGrad, k))  // skipped: still the fill pattern
        ASSERT_TRUE(b == 0xc0 || b == 0x7f) << op_case().name << " gradient " << k << " touched";
    }
  }
}

TEST_P(CudaOps, UnalignedAddressesWork) {
  // Matrix products want aligned operands; arenas see to that.
  for (const char* op : {"linear", "low_rank", "linear_cross_entropy", "feed_forward"})
    if (op_case().op->name == op) return;
  CudaRun run(context(), op_case(), kSeed, 3);
  const Expected expected(run);
  run.run(run.all(Accum::kWrite));
  expect_results(run, expected, {});
}

class CudaExtra : public CudaOps {};
INSTANTIATE_TEST_SUITE_P(One, CudaExtra, testing::Values<size_t>(0));

cases::Fill with_bad_ids(int64_t vocab) {
  return [=](const Rng& rng, const TensorView& out) {
    cases::ids(vocab)(rng, out);
    out.as<int32_t>()[2] = -1;
    out.as<int32_t>()[3] = static_cast<int32_t>(vocab);
  };
}

TEST_P(CudaExtra, IdsOutOfRangeGiveNaNAndNoGradient) {
  for (const auto& original : test_cases()) {
    const bool head = original.op->name == "linear_cross_entropy";
    if ((!head && original.op->name != "embedding") || original.in[head ? 1 : 0].spec.numel() < 5)
      continue;
    cases::OpCase c = original;
    c.in[head ? 1 : 0].fill = with_bad_ids(c.param[0].spec[0]);
    CudaRun run(context(), c, kSeed);
    run.run(run.all(Accum::kWrite));
    EXPECT_TRUE(run.guards_intact());
    if (head) {
      EXPECT_TRUE(std::isnan(run.values(CudaRun::kOut, 0)[0])) << c.name;
      EXPECT_TRUE(std::isnan(run.values(CudaRun::kOut, 1)[2])) << c.name;
      EXPECT_FALSE(std::isnan(run.values(CudaRun::kOut, 1)[0])) << c.name;
    } else {
      const auto width = static_cast<size_t>(c.param[0].spec[1]);
      EXPECT_TRUE(std::isnan(run.values(CudaRun::kOut, 0)[3 * width])) << c.name;
      EXPECT_FALSE(std::isnan(run.values(CudaRun::kOut, 0)[4 * width])) << c.name;
    }
    for (const double g : run.values(CudaRun::kGrad, run.count(CudaRun::kGrad) - 1))
      ASSERT_FALSE(std::isnan(g)) << c.name;
  }
}

TEST_P(CudaExtra, AdamWMatchesDouble) {
  // Pieces with a tail, a gap between two, decay and learning rate scale.
  const std::vector<AdamWPiece> pieces = {{0, 16384, 1.0f, 0.1f},
                                          {16384, 20003, 1.0f, 0.1f},
                                          {20032, 20037, 2.0f, 0.0f},
                                          {20064, 20065, 1.0f, 0.0f}};
  constexpr int64_t n = 20096;
  Context& ctx = context();
  const TensorSpec flat({n}), flat16({n}, DType::kBF16);
  Arena arena(Device::kCuda, 5 * align_up(flat.bytes()) + align_up(flat16.bytes()) + 4096, "adamw");
  std::vector<std::vector<float>> host(4, std::vector<float>(n));  // p, m, v, g
  for (size_t k = 0; k < 4; ++k) {
    const Rng rng(kSeed, hash_name("adamw"), k);
    for (size_t i = 0; i < n; ++i)
      host[k][i] = static_cast<float>(k == 2 ? 0.01 * rng.uniform(i) : 0.3 * rng.normal(i));
  }
  std::vector<TensorView> device;
  for (size_t k = 0; k < 4; ++k) device.push_back(arena.take(flat, "flat"));
  const TensorView half = arena.take(flat16, "copies");
  const TensorSpec piece_spec({static_cast<int64_t>(pieces.size() * sizeof(AdamWPiece) / 4)},
                              DType::kI32);
  const TensorView table = arena.take(piece_spec, "pieces");
  const TensorView norm = arena.take(TensorSpec({2}), "norm");
  auto send = [&](const TensorView& to, const void* from) {
    copy(ctx, to, TensorView(const_cast<void*>(from), to.spec));
  };
  send(table, pieces.data());
  ctx.reserve_workspace(grad_norm_workspace_bytes(pieces.size()));
  const AdamWStep step{.lr = 1e-2, .clip = 1.0, .update = 3};
  for (const bool broken : {false, true}) {
    if (broken) host[3][17] = std::numeric_limits<float>::infinity();
    for (size_t k = 0; k < 4; ++k) send(device[k], host[k].data());
    const auto* d_pieces = static_cast<const AdamWPiece*>(table.data);
    auto* d_norm = static_cast<double*>(norm.data);
    grad_norm(ctx, device[3].f32(), d_pieces, pieces.size(), nullptr, d_norm);
    adamw_update(ctx,
                 {.master = device[0].f32(),
                  .m = device[1].f32(),
                  .v = device[2].f32(),
                  .grad = device[3].f32(),
                  .copy = half.as<BF16>()},
                 d_pieces, pieces.size(), step, d_norm);
    double got_norm = 0;
    copy(ctx, TensorView(&got_norm, norm.spec), norm);
    std::vector<float> p(n), m(n);
    std::vector<BF16> p16(n);
    copy(ctx, TensorView(p.data(), flat), device[0]);
    copy(ctx, TensorView(m.data(), flat), device[1]);
    copy(ctx, TensorView(p16.data(), flat16), half);
    if (broken) {
      EXPECT_FALSE(std::isfinite(got_norm));
      EXPECT_EQ(p, host[0]);  // nothing moved
      EXPECT_EQ(m, host[1]);
      continue;
    }
    double squares = 0;
    for (const auto& piece : pieces)
      for (auto i = static_cast<size_t>(piece.begin); i < static_cast<size_t>(piece.end); ++i)
        squares += static_cast<double>(host[3][i]) * static_cast<double>(host[3][i]);
    const double want_norm = std::sqrt(squares);
    EXPECT_LE(std::fabs(got_norm - want_norm), 1e-12 * want_norm);
    std::vector<double> want(host[0].begin(), host[0].end());
    const double scale = step.clip / (want_norm + 1e-6);
    for (const auto& piece : pieces)
      for (auto i = static_cast<size_t>(piece.begin); i < static_cast<size_t>(piece.end); ++i) {
        const double g = static_cast<double>(host[3][i]) * scale;
        const double mi = 0.9 * static_cast<double>(host[1][i]) + 0.1 * g;
        const double vi = 0.99 * static_cast<double>(host[2][i]) + 0.01 * g * g;
        const double direction =
            mi / (1 - std::pow(0.9, 3)) / (std::sqrt(vi / (1 - std::pow(0.99, 3))) + step.eps);
        want[i] -= step.lr * static_cast<double>(piece.lr_scale) *
                   (direction + static_cast<double>(piece.decay) * want[i]);
      }
    EXPECT_TRUE(matches(std::span<const float>(p), std::span<const double>(want),
                        Tolerance::all(1e-6), {.what = "adamw"}));
    for (const auto& piece : pieces)
      for (auto i = static_cast<size_t>(piece.begin); i < static_cast<size_t>(piece.end); ++i)
        ASSERT_EQ(p16[i].bits, to_bf16(p[i]).bits) << i;
    EXPECT_EQ(p[20010], host[0][20010]);  // between the pieces
  }
}

/// bf16 numbers of N(0, deviation), the same for the same name.
std::vector<float> normal_bf16(int64_t n, const char* name, double deviation) {
  const Rng rng(kSeed, hash_name(name));
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = to_float(to_bf16(static_cast<float>(deviation * rng.normal(i))));
  return x;
}

/// What feed_forward leaves in its saved tensor: hidden values, and behind the backward their
/// gradients. `x` and `dy`: whole rows.
struct Hidden {
  std::vector<float> values, gradients;
};
struct FeedForwardSize {
  int64_t k, h, n;
};
Hidden hidden_of(const FeedForwardSize& s, std::span<const float> x, std::span<const float> dy) {
  constexpr DType kHalf = DType::kBF16;
  const int64_t rows = std::ssize(x) / s.k;
  Context ctx(Device::kCuda);
  const TensorSpec in({1, rows, s.k}, kHalf), out({1, rows, s.n}, kHalf);
  const std::vector<TensorSpec> ins = {in};
  const std::vector<TensorSpec> params = {TensorSpec({s.h, s.k}, kHalf),
                                          TensorSpec({s.n, s.h}, kHalf)};
  ShapeCall sizes;
  sizes.in = ins;
  sizes.param = params;
  kFeedForward.infer(sizes);
  ctx.reserve_workspace(sizes.workspace_bytes);
  DeviceImage image(ctx);
  image.add_values(in, x);
  image.add_values(params[0], normal_bf16(s.h * s.k, "W1", 1 / std::sqrt(double(s.k))));
  image.add_values(params[1], normal_bf16(s.n * s.h, "W2", 1 / std::sqrt(double(s.h))));
  image.add_values(out, dy);
  const size_t y = image.add(out), dx = image.add(in), saved = image.add(sizes.saved[0]);
  const size_t dw1 = image.add(TensorSpec({s.h, s.k})), dw2 = image.add(TensorSpec({s.n, s.h}));
  image.send();
  const auto views = [&](std::initializer_list<size_t> at) {
    std::vector<TensorView> v;
    for (const size_t i : at) v.push_back(image.view(i));
    return v;
  };
  const auto in_views = views({0}), param_views = views({1, 2}), out_views = views({y}),
             saved_views = views({saved}), dout = views({3}), din = views({dx}),
             dparam = views({dw1, dw2});
  const std::vector<Accum> modes(2, Accum::kWrite);
  OpCall call;
  call.in = in_views;
  call.param = param_views;
  call.out = out_views;
  call.saved = saved_views;
  run_forward(ctx, kFeedForward, call);
  image.fetch();
  Hidden hidden{image.values(saved), {}};
  call.out = {};
  call.dout = dout;
  call.din = din;
  call.din_mode = std::span(modes).first(1);
  call.dparam = dparam;
  call.dparam_mode = modes;
  run_backward(ctx, kFeedForward, call);
  image.fetch();
  EXPECT_TRUE(image.intact());
  hidden.gradients = image.values(saved);
  return hidden;
}

// Several tiles for each cluster of blocks, whose rings of loads go around several times, give the
// bits of one tile for each; and those are right.
TEST(CudaFeedForward, ManyTilesGiveTheBitsOfFew) {
  if (!have_gpu()) GTEST_SKIP() << "no GPU";
  // 9 x 9 pairs of tiles of 128 x 256, 66 clusters on an H200. Inner dimensions of 9 and 7 pieces.
  const FeedForwardSize s{520, 2056, 392};
  constexpr int64_t kRows = 2100, kPart = 256;
  const auto x = normal_bf16(kRows * s.k, "x", 1), dy = normal_bf16(kRows * s.n, "dy", 1);
  const Hidden all = hidden_of(s, x, dy);
  Hidden parts;
  for (int64_t r = 0; r < kRows; r += kPart) {
    const int64_t rows = std::min(kPart, kRows - r);
    const auto part = [&](const std::vector<float>& of, int64_t width) {
      return std::span(of).subspan(static_cast<size_t>(r * width),
                                   static_cast<size_t>(rows * width));
    };
    const Hidden few = hidden_of(s, part(x, s.k), part(dy, s.n));
    parts.values.insert(parts.values.end(), few.values.begin(), few.values.end());
    parts.gradients.insert(parts.gradients.end(), few.gradients.begin(), few.gradients.end());
  }
  EXPECT_TRUE(bit_equal(std::span<const float>(all.values), std::span<const float>(parts.values),
                        "hidden values"));
  EXPECT_TRUE(bit_equal(std::span<const float>(all.gradients),
                        std::span<const float>(parts.gradients), "their gradients"));
  for (int again = 0; again < 5; ++again) {
    const Hidden same = hidden_of(s, x, dy);
    EXPECT_EQ(same.values, all.values);
    EXPECT_EQ(same.gradients, all.gradients);
  }
  // Elements spread over all tiles, in double.
  const auto w1 = normal_bf16(s.h * s.k, "W1", 1 / std::sqrt(double(s.k))),
             w2 = normal_bf16(s.n * s.h, "W2", 1 / std::sqrt(double(s.h)));
  for (int64_t r = 0; r < kRows; r += 41)
    for (int64_t c = r % 37; c < s.h; c += 37) {
      double sum = 0, back = 0;
      for (int64_t k = 0; k < s.k; ++k)
        sum += double(x[static_cast<size_t>(r * s.k + k)]) *
               double(w1[static_cast<size_t>(c * s.k + k)]);
      for (int64_t n = 0; n < s.n; ++n)
        back += double(dy[static_cast<size_t>(r * s.n + n)]) *
                double(w2[static_cast<size_t>(n * s.h + c)]);
      const double root = std::max(sum, 0.0), hidden = root * root;
      const auto at = static_cast<size_t>(r * s.h + c);
      // The root is taken of a rounded square: relative errors of 2^-9 each.
      ASSERT_LE(std::fabs(double(all.values[at]) - hidden), 1e-2 * hidden + 1e-4) << r << " " << c;
      ASSERT_LE(std::fabs(double(all.gradients[at]) - 2 * root * back),
                1e-2 * std::fabs(2 * root * back) + 1e-2)
          << r << " " << c;
    }
}

// A context and its lanes know that their work is recorded, so that an op can refuse.
TEST(CudaLaunchGraph, LanesKnowThatTheyAreRecorded) {
  if (!have_gpu()) GTEST_SKIP() << "no GPU";
  Context ctx(Device::kCuda);
  ctx.open_lanes(3);
  const auto recorded = [&] {
    int n = 0;
    for (int i = 0; i < 3; ++i) n += ctx.lane(i).recording();
    return n;
  };
  int within = -1;
  const LaunchGraph graph(ctx, [&] { within = recorded(); });
  EXPECT_EQ(within, 3);
  EXPECT_EQ(recorded(), 0);
  EXPECT_THROW(LaunchGraph(ctx, [] { throw ConfigError("refused"); }), ConfigError);
  EXPECT_EQ(recorded(), 0);
}

TEST(CudaMemory, NewMemoryIsClearedBeforeItIsWritten) {
  if (!have_gpu()) GTEST_SKIP() << "no GPU";
  Context ctx(Device::kCuda);
  // Clearing 8 GiB keeps the GPU busy for milliseconds: were it only queued, the small piece would
  // be cleared after the copy.
  const Arena big(Device::kCuda, size_t{8} << 30, "much memory");
  Arena small(Device::kCuda, 4096, "little memory");
  const TensorView there = small.take(TensorSpec({16}), "sixteen numbers");
  std::vector<float> sent(16, 1.5f), got(16);
  copy(ctx, there, TensorView(sent.data(), there.spec));
  ctx.synchronize("test");
  copy(ctx, TensorView(got.data(), there.spec), there);
  EXPECT_EQ(got, sent);
}

}  // namespace
}  // namespace rwkv::test
