// When NCCL is asked to use copy engines.

#include "trainer/comm/copy_engines.h"

#include <gtest/gtest.h>

#include <map>

namespace rwkv {
namespace {

using Variables = std::map<std::string, std::string>;

bool allowed(const Variables& variables, int version = 22803, int ranks = 2) {
  return copies_allowed(version, ranks, [&](const char* name) {
    const auto at = variables.find(name);
    return at == variables.end() ? std::string() : at->second;
  });
}

TEST(CopyEngines, TwoRanksHangInSomeVersions) {
  for (const int version : {22800, 22803, 22809, 22903, 23102, 23200, 30000})
    EXPECT_FALSE(copies_hang(version, 2)) << version;
  for (const int version : {22904, 22907, 23003, 23007, 23100, 23101}) {
    EXPECT_TRUE(copies_hang(version, 2)) << version;
    EXPECT_FALSE(copies_hang(version, 3)) << version;
    EXPECT_FALSE(copies_hang(version, 8)) << version;
  }
}

TEST(CopyEngines, WithoutMulticastTheyDoNotHang) {
  EXPECT_FALSE(allowed({}, 22907, 2));
  EXPECT_TRUE(allowed({}, 22907, 4));
  EXPECT_TRUE(allowed({{"NCCL_NVLS_ENABLE", "0"}}, 22907, 2));
  EXPECT_FALSE(allowed({{"NCCL_NVLS_ENABLE", ""}}, 22907, 2));
  EXPECT_FALSE(allowed({{"NCCL_NVLS_ENABLE", "1"}}, 22907, 2));
  EXPECT_TRUE(allowed({{"NCCL_NVLS_ENABLE", "2"}}, 23102, 2));
  EXPECT_FALSE(allowed({{"NCCL_NVLS_ENABLE", "0"}, {"NCCL_P2P_DISABLE", "1"}}, 22907, 2));
}

TEST(CopyEngines, VariablesOfNcclSwitchThemOff) {
  EXPECT_TRUE(allowed({}));
  for (const auto& [name, value] : Variables{{"NCCL_P2P_DISABLE", "1"},
                                             {"NCCL_CUMEM_ENABLE", "0"},
                                             {"NCCL_WIN_ENABLE", "0x0"},
                                             {"NCCL_P2P_LEVEL", "LOC"},
                                             {"NCCL_CTA_POLICY", "0"}})
    EXPECT_FALSE(allowed({{name, value}})) << name << "=" << value;
  for (const char* policy : {"1", "DEFAULT", "EFFICIENCY"})
    EXPECT_FALSE(allowed({{"NCCL_CTA_POLICY", policy}})) << policy;
  for (const auto& [name, value] : Variables{{"NCCL_P2P_DISABLE", "0"},
                                             {"NCCL_CUMEM_ENABLE", "1"},
                                             {"NCCL_WIN_ENABLE", ""},
                                             {"NCCL_P2P_LEVEL", "NVL"},
                                             {"NCCL_CTA_POLICY", "2"}})
    EXPECT_TRUE(allowed({{name, value}})) << name << "=" << value;
  EXPECT_TRUE(allowed({{"NCCL_CTA_POLICY", "ZERO"}}));
}

}  // namespace
}  // namespace rwkv
