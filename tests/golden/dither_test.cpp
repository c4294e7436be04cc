// dither.h5: binary16 WKV-7 with deterministic dither, bit for bit. Rules: README.md here.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "data/io/hdf5_file.h"
#include "kernels/wkv/cpu/wkv7_fp16.h"
#include "kernels/wkv/dither.h"
#include "tests/ops/wkv7_fp16_harness.h"

namespace rwkv::test {
namespace {

Hdf5File golden_file() {
  const char* dir = std::getenv("RWKV_GOLDEN_DIR");
  return Hdf5File::open(
      std::string(dir != nullptr && *dir != '\0' ? dir : RWKV_SOURCE_DIR "/tests/golden") +
      "/dither.h5");
}

std::vector<float> halves(const Hdf5File& file, const std::string& name) {
  std::vector<float> x;
  for (const uint16_t bits : file.read<uint16_t>(name)) x.push_back(to_float(F16{bits}));
  return x;
}

/// CRC-32 of zlib (reflected 0xedb88320) over binary16 numbers in little endian.
uint32_t crc32_of(const float* x, size_t n) {
  static const auto table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int k = 0; k < 8; ++k) t[i] = (t[i] & 1) != 0 ? t[i] >> 1 ^ 0xedb88320u : t[i] >> 1;
    }
    return t;
  }();
  uint32_t crc = ~0u;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t bits = half_bits(x[i]).bits;
    for (const uint32_t byte : {bits & 0xff, bits >> 8})
      crc = crc >> 8 ^ table[(crc ^ byte) & 0xff];
  }
  return ~crc;
}

testing::AssertionResult same_bits(const std::string& what, const std::vector<float>& got,
                                   const std::vector<float>& want) {
  if (got.size() != want.size())
    return testing::AssertionFailure()
           << what << ": " << got.size() << " values, expected " << want.size();
  for (size_t i = 0; i < want.size(); ++i)
    if (float_bits(got[i]) != float_bits(want[i]))
      return testing::AssertionFailure()
             << what << "[" << i << "] is " << got[i] << ", expected " << want[i];
  return testing::AssertionSuccess();
}

TEST(DitherGolden, Rotator) {
  const Hdf5File file = golden_file();
  const auto phase = file.read<uint32_t>("rotator/phase");
  const auto value = file.read<float>("rotator/value");
  ASSERT_GT(phase.size(), 0u);
  for (size_t i = 0; i < phase.size(); ++i)
    ASSERT_EQ(float_bits(dither_rotator(phase[i])), float_bits(value[i])) << phase[i];
}

TEST(DitherGolden, FusedMultiplyAdd) {
  const Hdf5File file = golden_file();
  const auto a = halves(file, "fma/a"), b = halves(file, "fma/b"), c = halves(file, "fma/c");
  const auto result = file.read<uint16_t>("fma/result");
  ASSERT_GT(result.size(), 0u);
  for (size_t i = 0; i < result.size(); ++i) {
    const float want = to_float(F16{result[i]}), got = half_fma(a[i], b[i], c[i]);
    if (std::isnan(want))
      EXPECT_TRUE(std::isnan(got));
    else
      ASSERT_EQ(half_bits(got).bits, result[i]) << a[i] << " * " << b[i] << " + " << c[i];
  }
}

TEST(DitherGolden, Decay) {
  const Hdf5File file = golden_file();
  const auto logit = halves(file, "decay/w_logit"), nearest = halves(file, "decay/nearest");
  const auto phase = file.read<uint32_t>("decay/phase");
  const auto exact = file.read<double>("decay/exact");
  ASSERT_GT(exact.size(), 0u);
  int equal = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const float w = dithered_decay(logit[i], phase[i]);
    equal += w == nearest[i];
    const int exponent = std::max(std::ilogb(exact[i] == 0 ? 1e-9 : exact[i]), -14);
    EXPECT_LE(std::fabs(static_cast<double>(w) - exact[i]),
              std::ldexp(0.5, exponent - 10) + 0x1p-22)
        << logit[i] << ", phase " << phase[i];
  }
  std::printf("w' is the nearest binary16 number in %d of %zu cases\n", equal, exact.size());
}

class DitherEvolution : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    group_ = str(GetParam(), "/");
    for (const char* key : {"B", "T", "H", "N", "has_state"})
      size_.push_back(file_.read_scalar<int64_t>(str(group_, "size/", key)));
    s_ = {size_[0], size_[1], size_[2], size_[3], true};
    ASSERT_EQ(s_.head_size, 64);
    d_ = {.r = get("r"),
          .w_logit = get("w_logit"),
          .k = get("k"),
          .v = get("v"),
          .a = get("a"),
          .b = get("b")};
    if (file_.exists(group_ + "s0"))
      d_.s0 = get("s0");
    else
      d_.s0.assign(static_cast<size_t>(s_.batch * s_.heads) * 4096, 0.0f);
    elapsed_ = file_.read<int32_t>(group_ + "elapsed");
  }
  std::vector<float> get(const char* name) const { return halves(file_, group_ + name); }

  const Hdf5File file_ = golden_file();
  std::string group_;
  std::vector<int64_t> size_;
  WkvShape s_;
  Wkv7Data d_;
  std::vector<int32_t> elapsed_;
};

// From the given w', and where it follows from w_logit from that: u, y and the state of every
// token.
TEST_P(DitherEvolution, TokenByToken) {
  const auto w = get("w_dithered"), u = get("u"), y = get("y"), states = get("state");
  const auto crc = file_.read<uint32_t>(group_ + "state_crc32");
  const auto after = file_.read<int32_t>(group_ + "state_after");
  const bool from_logit = group_ != "slow/";
  size_t compared = 0;
  for (int64_t head = 0; head < s_.batch * s_.heads; ++head) {
    const float* s0 = d_.s0.data() + head * 4096;
    std::vector<float> st(4096), rows(4096), got_u(64), got_y(64);
    for (size_t i = 0; i < 4096; ++i) st[i % 64 * 64 + i / 64] = s0[i];
    for (int64_t t = 0; t < s_.tokens; ++t) {
      const size_t o = fp16_row(s_, head, t);
      const auto part = [&](const std::vector<float>& x) {
        return std::vector<float>(x.begin() + static_cast<int64_t>(o),
                                  x.begin() + static_cast<int64_t>(o) + 64);
      };
      const auto b = static_cast<size_t>(head / s_.heads);
      for (uint32_t j = 0; from_logit && j < 64; ++j)
        ASSERT_EQ(dithered_decay(d_.w_logit[o + j],
                                 dither_phase(static_cast<uint32_t>(elapsed_[b] + t),
                                              static_cast<uint32_t>(head % s_.heads), j)),
                  w[o + j]);
      cpu::wkv7_fp16_token(st.data(), &w[o], &d_.r[o], &d_.k[o], &d_.v[o], &d_.a[o], &d_.b[o],
                           got_u.data(), got_y.data());
      ASSERT_TRUE(same_bits(str("u of token ", t), got_u, part(u)));
      ASSERT_TRUE(same_bits(str("y of token ", t), got_y, part(y)));
      for (size_t i = 0; i < 4096; ++i) rows[i] = st[i % 64 * 64 + i / 64];
      ASSERT_EQ(
          crc32_of(rows.data(), 4096),
          crc[static_cast<size_t>((head / s_.heads * s_.tokens + t) * s_.heads + head % s_.heads)])
          << "state after token " << t;
      for (size_t i = 0; i < after.size(); ++i) {
        if (after[i] != t + 1) continue;
        const auto at =
            ((head / s_.heads * std::ssize(after) + static_cast<int64_t>(i)) * s_.heads +
             head % s_.heads) *
            4096;
        ASSERT_TRUE(same_bits("state", rows, {states.begin() + at, states.begin() + at + 4096}));
        ++compared;
      }
    }
  }
  EXPECT_EQ(compared, after.size() * static_cast<size_t>(s_.batch * s_.heads));
}

// The op: y and the state of every token from w_logit, in one call and in single steps. In "slow"
// the last bit of w' is not defined, so that only the limits of another order apply.
TEST_P(DitherEvolution, Op) {
  RWKV_NEED_TEST_DEVICE();
  const WkvKernel& kernel = fp16_kernel("fp16-dithered");
  const Fp16Result whole = run_fp16(kernel, s_, d_, elapsed_);
  const auto y = get("y");
  if (group_ == "slow/") {
    double diff = 0, norm = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      diff += std::pow(static_cast<double>(whole.y[i]) - static_cast<double>(y[i]), 2);
      norm += std::pow(static_cast<double>(y[i]), 2);
    }
    EXPECT_LE(std::sqrt(diff / norm), 4e-3);
    // TokenByToken holds for the CPU from the given w': on a GPU, the CPU's bits.
    const Fp16Result cpu = run_fp16(fp16_kernel("fp16-dithered", Device::kCpu), s_, d_, elapsed_);
    EXPECT_TRUE(same_bits("y", whole.y, cpu.y));
    EXPECT_TRUE(same_bits("s_out", whole.s_out, cpu.s_out));
    return;
  }
  EXPECT_TRUE(same_bits("y", whole.y, y));
  EXPECT_EQ(run_fp16(kernel, s_, d_, elapsed_, {.state_type = DType::kF16}).s_out, whole.s_out);
  const auto crc = file_.read<uint32_t>(group_ + "state_crc32");
  WkvShape one = s_;
  one.tokens = 1;
  Fp16Result running;
  running.s_out = d_.s0;
  running.elapsed = elapsed_;
  const auto row = static_cast<int64_t>(s_.heads * 64);
  for (int64_t t = 0; t < s_.tokens; ++t) {
    Wkv7Data x{.s0 = running.s_out};
    std::vector<float>* to[] = {&x.r, &x.w_logit, &x.k, &x.v, &x.a, &x.b};
    const std::vector<float>* from[] = {&d_.r, &d_.w_logit, &d_.k, &d_.v, &d_.a, &d_.b};
    for (size_t i = 0; i < 6; ++i)
      for (int64_t b = 0; b < s_.batch; ++b) {
        const auto at = from[i]->begin() + (b * s_.tokens + t) * row;
        to[i]->insert(to[i]->end(), at, at + row);
      }
    running = run_fp16(kernel, one, x, running.elapsed, {.state_type = DType::kF16});
    for (int64_t head = 0; head < s_.batch * s_.heads; ++head)
      ASSERT_EQ(
          crc32_of(running.s_out.data() + head * 4096, 4096),
          crc[static_cast<size_t>((head / s_.heads * s_.tokens + t) * s_.heads + head % s_.heads)])
          << "token " << t << ", head " << head;
  }
  EXPECT_TRUE(same_bits("state", whole.s_out, running.s_out));
  EXPECT_EQ(whole.elapsed, running.elapsed);
}

INSTANTIATE_TEST_SUITE_P(Golden, DitherEvolution, testing::Values("fresh", "slots", "slow"),
                         [](const auto& param) { return std::string(param.param); });

// "fresh" continued from the state after its first tokens.
TEST(DitherGolden, Resumed) {
  RWKV_NEED_TEST_DEVICE();
  const Hdf5File file = golden_file();
  const auto tokens = file.read_scalar<int64_t>("fresh/size/T"),
             first = file.read_scalar<int64_t>("resumed/first_token"),
             heads = file.read_scalar<int64_t>("fresh/size/H"),
             batch = file.read_scalar<int64_t>("fresh/size/B");
  ASSERT_EQ(batch, 1);
  const WkvShape s{batch, tokens - first, heads, 64, true};
  const auto rest = [&](const char* name) {
    const auto all = halves(file, str("fresh/", name));
    return std::vector<float>(all.begin() + first * heads * 64, all.end());
  };
  Wkv7Data d{.r = rest("r"),
             .w_logit = rest("w_logit"),
             .k = rest("k"),
             .v = rest("v"),
             .a = rest("a"),
             .b = rest("b")};
  d.s0 = halves(file, "resumed/s0");
  const Fp16Result got =
      run_fp16(fp16_kernel("fp16-dithered"), s, d, file.read<int32_t>("resumed/elapsed"));
  EXPECT_TRUE(same_bits("y", got.y, halves(file, "resumed/y")));
  EXPECT_TRUE(same_bits("y, uninterrupted", got.y, rest("y")));
  EXPECT_TRUE(same_bits("s_out", got.s_out, halves(file, "resumed/s_out")));
}

}  // namespace
}  // namespace rwkv::test
