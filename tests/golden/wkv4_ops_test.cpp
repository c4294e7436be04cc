// wkv4_ops.h5: every WKV-4 variant of this build for the device under test on every case of the
// file. Limits: tests/golden/README.md.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "data/io/hdf5_file.h"
#include "tests/ops/wkv4_harness.h"

namespace rwkv::test {
namespace {

std::string golden_file() {
  const char* dir = std::getenv("RWKV_GOLDEN_DIR");
  return std::string(dir != nullptr && *dir != '\0' ? dir : RWKV_SOURCE_DIR "/tests/golden") +
         "/wkv4_ops.h5";
}

// Cases are called KIND_tT or tT; limits go by KIND.
bool is_far(const std::string& name) {
  return name.rfind("wide", 0) == 0 || name.rfind("state_far", 0) == 0;
}

class Wkv4Golden : public testing::TestWithParam<const WkvKernel*> {
 protected:
  /// False if the variant refuses the case.
  bool check_case(const Hdf5File& file, const std::string& name) {
    SCOPED_TRACE(name);
    const WkvKernel& kernel = *GetParam();
    const auto size = [&](const char* key) {
      return file.read_scalar<int64_t>(name + "/size/" + key);
    };
    const WkvShape s{size("B"), size("T"), size("C"), 1, size("has_state") != 0};
    const auto input = [&](const char* key) { return file.read<float>(name + "/" + key); };
    Wkv4Data d;
    d.k = input("k");
    d.v = input("v");
    d.dy = input("dy");
    d.tau = input("time_decay");
    d.u = input("time_first");
    if (s.has_state) {
      d.a0 = input("a0");
      d.b0 = input("b0");
      d.p0 = input("p0");
      d.da_out.assign(d.a0.size(), 0.0f);
      d.db_out.assign(d.a0.size(), 0.0f);
    }
    Wkv4Result got;
    try {
      got = run_wkv4(kernel, s, d);
    } catch (const ConfigError&) {
      EXPECT_EQ(kernel.family, "cumsum-naive");
      return false;
    }
    const auto want = [&](const char* key) { return file.read<double>(name + "/" + key); };
    const Wkv4Limits limits = wkv4_limits(is_far(name), kernel.io);
    const auto check = [&](const char* what, double error, double limit) {
      worst_[what] = std::max(worst_[what], error / limit);
      EXPECT_TRUE(within(what, error, limit));
    };
    check("y", max_error(got.y, want("y")), limits.y);
    check("dk", max_error(got.grad[kDk], want("dk")), limits.dkv);
    check("dv", max_error(got.grad[kDv], want("dv")), limits.dkv);
    check("dtime_decay", max_error(got.grad[kDtau], want("dtime_decay")), limits.rest);
    check("dtime_first", max_error(got.grad[kDu], want("dtime_first")), limits.rest);
    if (s.has_state) {
      check("da0", max_error(got.grad[kDa0], want("da0")), limits.rest);
      check("db0", max_error(got.grad[kDb0], want("db0")), limits.rest);
      const auto a = want("a_out"), b = want("b_out"), p = want("p_out");
      std::vector<double> ratio, log_sum;
      for (size_t i = 0; i < a.size(); ++i) {
        ratio.push_back(a[i] / b[i]);
        log_sum.push_back(p[i] + std::log(b[i]));
      }
      check("a / b", max_error(state_ratio(got), ratio), limits.ratio);
      check("p + ln b", absolute_error(state_log_sum(got), log_sum), limits.log_sum);
    }
    return true;
  }
  std::map<std::string, double> worst_;  ///< largest errors in units of their limits
};

TEST_P(Wkv4Golden, EveryCase) {
  RWKV_NEED_TEST_DEVICE();
  const Hdf5File file = Hdf5File::open(golden_file());
  int cases = 0, compared = 0;
  for (const std::string& name : file.list()) {
    if (!file.exists(name + "/size")) continue;  // not an operator case
    ++cases;
    if (check_case(file, name)) ++compared;
  }
  EXPECT_GT(cases, 0) << golden_file() << " holds no operator case";
  EXPECT_GT(compared, 0) << GetParam()->name << " fits no case of " << golden_file();
  std::printf("%s, largest errors of %d cases in units of their limits:",
              std::string(GetParam()->name).c_str(), compared);
  for (const auto& [what, error] : worst_) std::printf(" %s %.3f", what.c_str(), error);
  std::printf("\n");
}

INSTANTIATE_TEST_SUITE_P(Device, Wkv4Golden, testing::ValuesIn(wkv4_variants()), wkv4_variant_name);

}  // namespace
}  // namespace rwkv::test
