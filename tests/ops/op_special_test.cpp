// What the case-by-case comparison does not reach: refusals, split sequences, chunked losses, ties,
// non-finite values and the key normalisation row by row.

#include <cmath>
#include <limits>

#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/key_prepare.h"
#include "kernels/ops/layer_norm.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/low_rank.h"
#include "kernels/ops/token_shift.h"
#include "kernels/ops/value_residual.h"
#include "kernels/ops/wkv7_output.h"
#include "tests/ops/op_harness.h"

namespace rwkv::test {
namespace {

using cases::normal;
using cases::OpCase;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

testing::AssertionResult close(GuardedBuffer& got, GuardedBuffer& want, double tol,
                               const std::string& what) {
  return matches(std::span<const float>(got.f32()), std::span<const float>(want.f32()),
                 Tolerance::all(tol), {.what = what});
}

template <class Failure>
std::string refusal(const Op& op, std::vector<TensorSpec> in, std::vector<TensorSpec> param,
                    const void* attrs = nullptr) {
  ShapeCall call;
  call.in = in;
  call.param = param;
  call.attrs = attrs;
  try {
    op.infer(call);
  } catch (const Failure& e) {
    return e.what();
  }
  return "";
}

TEST(Infer, NamesOpArgumentFoundAndExpected) {
  const LayerNormAttrs norm;
  EXPECT_EQ(refusal<ShapeError>(kLayerNorm, {{2, 3, 8}}, {{8}, {7}}, &norm),
            "op layer_norm, bias: found (7) f32, expected (8) f32: one value per channel of x");
  EXPECT_EQ(refusal<ShapeError>(kLinear, {{2, 3, 8}}, {{5, 9}}),
            "op linear, weight: found (5, 9) f32, expected (5, 8) f32: stored (out, in), in = last "
            "dimension of x");
  EXPECT_EQ(refusal<ShapeError>(kAdd, {{2, 3}, {3, 2}}, {}),
            "op add, y: found (3, 2) f32, expected the shape of x, (2, 3) f32");
  EXPECT_EQ(refusal<ShapeError>(kEmbedding, {}, {{4, 4}}),
            "op embedding: found 0 inputs, expected 1");
  EXPECT_EQ(refusal<DTypeError>(kEmbedding, {{1, 2}}, {{4, 4}}),
            "op embedding, tokens: found (1, 2) f32, expected i32");
}

TEST(Infer, RefusesWhatDoesNotFit) {
  const TensorSpec x{2, 3, 8}, c{1, 1, 8}, targets({2, 3}, DType::kI32);
  const LowRankAttrs low;
  const TokenShiftAttrs shift;
  const KeyPrepareAttrs key5{.head_size = 5}, key4{.head_size = 4};
  const Wkv7OutputAttrs out4{.head_size = 4};
  const LinearCrossEntropyAttrs loss, negative{.chunk_tokens = -1};
  EXPECT_NE(refusal<ShapeError>(kLowRank, {x}, {{8, 2}, {3, 8}}, &low), "");
  EXPECT_NE(refusal<ShapeError>(kLowRank, {x}, {{8, 2}, {2, 8}, {8}}, &low), "");
  EXPECT_NE(refusal<ShapeError>(kTokenShift, {x}, {c, {1, 1, 7}}, &shift), "");
  EXPECT_NE(refusal<ShapeError>(kTokenShift, {x, {3, 8}}, {c}, &shift), "");
  EXPECT_NE(refusal<ShapeError>(kTokenShift, {x}, {}, &shift), "");
  EXPECT_NE(refusal<ShapeError>(kTokenShift, {x}, {c, c, c, c, c, c, c}, &shift), "");
  EXPECT_NE(refusal<ConfigError>(kKeyPrepare, {x, x}, {c, c}, &key5), "");
  EXPECT_NE(refusal<ShapeError>(kKeyPrepare, {x, {2, 3, 4}}, {c, c}, &key4), "");
  EXPECT_NE(refusal<ShapeError>(kValueResidual, {x, x}, {}), "");
  EXPECT_NE(refusal<ShapeError>(kWkv7Output, {x, x, x, x, x}, {{8}, {8}, {4, 2}}, &out4), "");
  EXPECT_NE(refusal<ShapeError>(kLinearCrossEntropy, {x, TensorSpec({3, 2}, DType::kI32)}, {{9, 8}},
                                &loss),
            "");
  EXPECT_NE(refusal<ConfigError>(kLinearCrossEntropy, {x, targets}, {{9, 8}}, &negative), "");
  EXPECT_NE(refusal<ShapeError>(kSquaredRelu, {{2, 0}}, {}), "");
  EXPECT_NE(refusal<DTypeError>(kSquaredRelu, {TensorSpec({2}, DType::kF16)}, {}), "");
  // One type for all activations and matrices, f32 for vectors.
  const TensorSpec half({2, 4}, DType::kBF16), full({2, 4});
  EXPECT_EQ(refusal<DTypeError>(kAdd, {half, half}, {}), "");
  EXPECT_NE(refusal<DTypeError>(kAdd, {half, full}, {}), "");
  EXPECT_EQ(refusal<DTypeError>(kLinear, {half}, {half}), "");
  EXPECT_NE(refusal<DTypeError>(kLinear, {half}, {full}), "");
  EXPECT_NE(refusal<InternalError>(kLayerNorm, {x}, {{8}, {8}}), "");
  EXPECT_EQ(refusal<Error>(kKeyPrepare, {x, x}, {c, c}, &key4), "");
}

OpCase loss_case(int64_t b, int64_t t, int64_t c, int64_t v, const LinearCrossEntropyAttrs& a) {
  return {.name = "linear_cross_entropy/special",
          .op = &kLinearCrossEntropy,
          .in = {{"x", {b, t, c}, normal(0, 1)},
                 {"targets", TensorSpec({b, t}, DType::kI32), cases::ids(v)}},
          .param = {{"weight", {v, c}, normal(0, 0.5)}},
          .attrs = cases::attrs(a)};
}

TEST(Types, CpuKernelsRefuseBf16) {
  std::vector<uint8_t> memory(size_t{8} << 20);
  for (const auto& original : cases::all_cases()) {
    if (original.use != cases::Use::kTest) continue;
    const cases::OpCase c = cases::in_bf16(original);
    const ShapeCall shapes = c.infer();
    std::vector<TensorView> in, param, out, saved;
    for (const auto& a : c.in) in.emplace_back(memory.data(), a.spec);
    for (const auto& a : c.param) param.emplace_back(memory.data(), a.spec);
    for (const auto& s : shapes.out) out.emplace_back(memory.data(), s);
    for (const auto& s : shapes.saved) saved.emplace_back(memory.data(), s);
    Context cpu;
    EXPECT_THROW(
        run_forward(cpu, *c.op,
                    {.in = in, .param = param, .out = out, .saved = saved, .attrs = c.attrs.get()}),
        DTypeError)
        << c.name;
  }
}

TEST(Infer, LinearOfATransposedWeight) {
  const LinearAttrs transposed{.transposed = true};
  EXPECT_EQ(refusal<ShapeError>(kLinear, {{2, 3, 8}}, {{8, 5}}, &transposed), "");
  EXPECT_EQ(refusal<ShapeError>(kLinear, {{2, 3, 8}}, {{5, 8}}, &transposed),
            "op linear, weight: found (5, 8) f32, expected (8, 8) f32: stored (in, out), in = last "
            "dimension of x");
  EXPECT_NE(refusal<ShapeError>(kLinear, {{2, 3, 8}}, {{8}}, &transposed), "");
}

TEST(LinearCrossEntropy, ChunksOfTheWholeFormsSizeAreBitEqual) {
  const OpCase whole = loss_case(2, 350, 24, 50, {});  // two chunks of tokens
  const OpCase chunked = loss_case(2, 350, 24, 50, {.chunk_tokens = kLinearCrossEntropyChunk});
  const OpCase small = loss_case(2, 350, 24, 50, {.chunk_tokens = 96});
  OpRun a(whole, 3), b(chunked, 3), c(small, 3);
  for (OpRun* run : {&a, &b, &c}) {
    run->forward();
    run->backward(run->all(Accum::kWrite));
    EXPECT_TRUE(run->guards_intact());
  }
  for (const size_t o : {0, 1}) {
    EXPECT_TRUE(bit_equal<const float>(b.out[o].f32(), a.out[o].f32(), "outputs"));
    EXPECT_TRUE(close(c.out[o], a.out[o], 1e-6, "small chunks"));
  }
  for (const size_t g : {0, 2}) {
    EXPECT_TRUE(bit_equal<const float>(b.grad[g].f32(), a.grad[g].f32(), "gradients"));
    EXPECT_TRUE(close(c.grad[g], a.grad[g], 2e-6, "small chunks"));
  }
}

TEST(LinearCrossEntropy, L2WrapGoesToTheLowestIndexOfATie) {
  // All logits equal 2: softmax is even, so the gradient of x = 1 is the sum of dlogits * 2, and
  // that of the weights shows each dlogit by itself.
  const OpCase one = loss_case(1, 1, 1, 4, {});
  OpRun run(one, 1);
  run.in[0].f32()[0] = 1;
  run.in[1].values<int32_t>()[0] = 3;
  for (float& w : run.param[0].f32()) w = 2;
  run.dout[0].f32()[0] = 3;  // upstream gradient
  run.forward();
  EXPECT_FLOAT_EQ(run.out[0].f32()[0], std::log(4.0f));
  run.backward(run.all(Accum::kWrite));
  const auto dw = run.grad[2].f32();
  EXPECT_NEAR(dw[0], 3 * (0.25 + 1e-4 * 2), 1e-6);
  EXPECT_NEAR(dw[1], 3 * 0.25, 1e-6);
  EXPECT_NEAR(dw[2], 3 * 0.25, 1e-6);
  EXPECT_NEAR(dw[3], 3 * (0.25 - 1), 1e-6);
}

TEST(LinearCrossEntropy, NonFiniteLogitsReachTheLoss) {
  for (const int64_t chunk : {0, 2})
    for (const float bad : {kNaN, std::numeric_limits<float>::infinity()}) {
      const OpCase one = loss_case(1, 5, 3, 40, {.chunk_tokens = chunk});
      OpRun run(one, 1);
      run.in[0].f32()[3 * 3 + 1] = bad;
      run.forward();
      EXPECT_TRUE(std::isnan(run.out[0].f32()[0]));
      EXPECT_TRUE(std::isnan(run.out[1].f32()[3]));
      EXPECT_TRUE(std::isfinite(run.out[1].f32()[2]));
    }
}

TEST(LinearCrossEntropy, HugeLogitsStayFinite) {
  const OpCase one = loss_case(1, 4, 2, 30, {});
  OpRun run(one, 1);
  for (float& x : run.in[0].f32()) x *= 1e4f;
  run.forward();
  run.backward(run.all(Accum::kWrite));
  EXPECT_TRUE(std::isfinite(run.out[0].f32()[0]));
  for (const float g : run.grad[2].f32()) EXPECT_TRUE(std::isfinite(g));
}

TEST(Ids, OutOfRangeIsNamed) {
  for (const int32_t bad : {-1, 40, 1 << 30}) {
    const OpCase one = loss_case(1, 5, 3, 40, {});
    OpRun run(one, 1);
    run.in[1].values<int32_t>()[2] = bad;
    try {
      run.forward();
      FAIL() << "no exception";
    } catch (const ShapeError& e) {
      const std::string text = e.what();
      EXPECT_NE(text.find(str("found id ", bad, " at flat position 2")), std::string::npos) << text;
    }
    const OpCase gather{.name = "embedding/special",
                        .op = &kEmbedding,
                        .in = {{"tokens", TensorSpec({1, 5}, DType::kI32), cases::ids(40)}},
                        .param = {{"weight", {40, 3}, normal(0, 1)}}};
    OpRun lookup(gather, 1);
    lookup.in[0].values<int32_t>()[2] = bad;
    EXPECT_THROW(lookup.forward(), ShapeError);
  }
}

TEST(TokenShift, TwoPiecesEqualOneSequence) {
  constexpr int64_t B = 2, T = 11, C = 10, cut = 4;
  const auto make = [&](int64_t t) {
    return OpCase{.name = "token_shift/special",
                  .op = &kTokenShift,
                  .in = {{"h", {B, t, C}, normal(0, 1)}, {"prev", {B, C}, normal(0, 1)}},
                  .param = {{"mix_0", {1, 1, C}, cases::uniform(0, 1)},
                            {"mix_1", {1, 1, C}, cases::uniform(0, 1)}},
                  .attrs = cases::attrs(TokenShiftAttrs{})};
  };
  const OpCase all_case = make(T), head_case = make(cut), tail_case = make(T - cut);
  OpRun all(all_case, 9), head(head_case, 9), tail(tail_case, 9);
  // Copies tokens [begin, end) of a (B, T, C) tensor.
  const auto piece = [&](GuardedBuffer& from, GuardedBuffer& to, int64_t begin, int64_t end) {
    for (int64_t b = 0; b < B; ++b)
      std::copy_n(from.f32().data() + (b * T + begin) * C, (end - begin) * C,
                  to.f32().data() + b * (end - begin) * C);
  };
  const auto copy = [](GuardedBuffer& from, GuardedBuffer& to) {
    std::copy(from.f32().begin(), from.f32().end(), to.f32().begin());
  };
  piece(all.in[0], head.in[0], 0, cut);
  piece(all.in[0], tail.in[0], cut, T);
  copy(all.in[1], head.in[1]);
  for (const size_t m : {0, 1}) {
    copy(all.param[m], head.param[m]);
    copy(all.param[m], tail.param[m]);
    piece(all.dout[m], head.dout[m], 0, cut);
    piece(all.dout[m], tail.dout[m], cut, T);
  }
  copy(all.dout[2], tail.dout[2]);
  all.forward();
  head.forward();
  copy(head.out[2], tail.in[1]);
  tail.forward();
  tail.backward(tail.all(Accum::kWrite));
  copy(tail.grad[1], head.dout[2]);  // the gradient of prev flows into last
  head.backward(head.all(Accum::kWrite));
  all.backward(all.all(Accum::kWrite));

  const auto expect_pieces = [&](GuardedBuffer& whole, GuardedBuffer& first, GuardedBuffer& second,
                                 const std::string& what) {
    GuardedBuffer a(first.spec()), b(second.spec());
    piece(whole, a, 0, cut);
    piece(whole, b, cut, T);
    EXPECT_TRUE(close(first, a, 1e-6, what));
    EXPECT_TRUE(close(second, b, 1e-6, what));
  };
  for (const size_t m : {0, 1}) expect_pieces(all.out[m], head.out[m], tail.out[m], "y");
  EXPECT_TRUE(bit_equal<const float>(tail.out[2].f32(), all.out[2].f32(), "last"));
  expect_pieces(all.grad[0], head.grad[0], tail.grad[0], "dh");
  EXPECT_TRUE(bit_equal<const float>(head.grad[1].f32(), all.grad[1].f32(), "dprev"));
}

// Rows of norm 1 down to 1e-16 of an ordinary one, and zero: the spec's limit is 2e-6 per row.
TEST(KeyPrepare, NormalisationRowByRow) {
  constexpr int64_t N = 64;
  const double sizes[] = {1, 1e-3, 1e-6, 1e-9, 1e-11, 1e-14, 1e-16, 0};
  constexpr int64_t kRows = 8;
  const OpCase one{
      .name = "key_prepare/keynorm",
      .op = &kKeyPrepare,
      .in = {{"k0", {1, kRows, N}, normal(0, 1)}, {"iclr_logit", {1, kRows, N}, normal(0, 1)}},
      .param = {{"k_k", {1, 1, N}, normal(1, 0)}, {"k_a", {1, 1, N}, normal(1, 0)}},
      .attrs = cases::attrs(KeyPrepareAttrs{.head_size = N})};
  OpRun run(one, 11);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t i = 0; i < N; ++i)
      run.in[0].f32()[static_cast<size_t>(r * N + i)] *= static_cast<float>(sizes[r]);
  for (float& d : run.dout[0].f32()) d = 0;  // only the path through the normalisation
  auto c = reference_operands<double>(run);
  ref::key_prepare_forward(c);
  ref::key_prepare_backward(c);
  run.forward();
  run.backward(run.all(Accum::kWrite));
  for (size_t r = 0; r < kRows; ++r) {
    const auto compare = [&](GuardedBuffer& got, const std::vector<double>& want,
                             const char* what) {
      EXPECT_TRUE(matches(std::span<const float>(got.f32().subspan(r * N, N)),
                          std::span<const double>(want).subspan(r * N, N),
                          Tolerance{-1, 2e-6, 2e-6}, {.what = str(what, " at norm ", sizes[r])}));
    };
    compare(run.out[1], c.out[1], "a");
    compare(run.out[2], c.out[2], "b");
    compare(run.grad[0], c.din[0], "dk0");
    if (sizes[r] == 0) {
      for (const float a : run.out[1].f32().subspan(r * N, N)) EXPECT_EQ(a, 0.0f);
    }
  }
}

TEST(NonFinite, OneBadInputShowsInTheOutput) {
  for (const auto& c : cases::all_cases()) {
    if (c.use != cases::Use::kTest) continue;
    for (size_t i = 0; i < c.in.size(); ++i) {
      if (c.in[i].spec.dtype != DType::kF32 || c.op->name == "last_token") continue;
      OpRun run(c, 1);
      run.in[i].f32()[0] = kNaN;
      run.forward();
      bool seen = false;
      for (auto& o : run.out)
        for (const float v : o.f32()) seen = seen || std::isnan(v);
      EXPECT_TRUE(seen) << c.name << ": a NaN in " << c.in[i].name << " vanished";
    }
  }
}

}  // namespace
}  // namespace rwkv::test
