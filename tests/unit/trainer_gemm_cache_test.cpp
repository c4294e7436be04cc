// The cache of product algorithms: merging, damage, places that cannot be used.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "data/io/atomic_file.h"
#include "kernels/core/error.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/gemm_choices.h"

namespace rwkv {
namespace {

constexpr const char* kPlace = "greylag-gemm 1; a card; a library\n";

class GemmCacheTest : public testing::Test {
 protected:
  void SetUp() override { setenv("RWKV_CACHE_DIR", (dir_ / "deep/cache").c_str(), 1); }
  void TearDown() override { unsetenv("RWKV_CACHE_DIR"); }
  test::ScratchDir dir_{"gemm_cache"};
};

TEST_F(GemmCacheTest, AddsWhatIsNewAndKeepsWhatIsThere) {
  const GemmCache cache(kPlace);
  EXPECT_EQ(cache.read(), "");
  cache.add(std::string(kPlace) + "1 2 3   aa bb\n");
  EXPECT_EQ(cache.read(), std::string(kPlace) + "1 2 3   aa bb\n");
  cache.add(std::string(kPlace) + "1 2 3   cc dd\n1 2 4   ee ff\n");
  EXPECT_EQ(cache.read(), std::string(kPlace) + "1 2 3   aa bb\n1 2 4   ee ff\n");
  // Another GPU has another file.
  EXPECT_NE(GemmCache("greylag-gemm 1; another card\n").path(), cache.path());
}

TEST_F(GemmCacheTest, DamageIsReportedAndMended) {
  const GemmCache cache(kPlace);
  cache.add(std::string(kPlace) + "1 2 3   aa bb\n");
  std::string text = read_file(cache.path());
  text[text.find("aa")] = 'b';
  write_file_atomic(cache.path(), text);
  EXPECT_THROW(cache.read(), IoError);
  cache.add(std::string(kPlace) + "5 6 7   aa bb\n");
  EXPECT_EQ(cache.read(), std::string(kPlace) + "5 6 7   aa bb\n");
  write_file_atomic(cache.path(), "");
  EXPECT_THROW(cache.read(), IoError);
}

TEST_F(GemmCacheTest, UnusablePlacesGiveIoErrors) {
  setenv("RWKV_CACHE_DIR", std::string(5000, 'x').c_str(), 1);
  const GemmCache cache(kPlace);
  EXPECT_THROW(cache.read(), IoError);
  EXPECT_THROW(cache.add(std::string(kPlace) + "1   a\n"), IoError);
  std::ofstream(dir_ / "file") << "x";
  setenv("RWKV_CACHE_DIR", (dir_ / "file/below").c_str(), 1);
  EXPECT_EQ(GemmCache(kPlace).read(), "");
  EXPECT_THROW(GemmCache(kPlace).add(std::string(kPlace) + "1   a\n"), IoError);
}

TEST_F(GemmCacheTest, RunsSideBySideLoseNothing) {
  const GemmCache cache(kPlace);
  std::vector<std::thread> runs;
  for (int r = 0; r < 4; ++r)
    runs.emplace_back([&cache, r] {
      for (int i = 0; i < 10; ++i) cache.add(str(kPlace, r, " ", i, "   a\n"));
    });
  for (auto& run : runs) run.join();
  const std::string text = cache.read();
  EXPECT_EQ(std::ranges::count(text, '\n'), 41);
}

TEST(GemmCachePlace, MayBeMissing) {
  const auto keep = [](const char* name) {
    const char* v = std::getenv(name);
    return std::string(v == nullptr ? "" : v);
  };
  const std::string home = keep("HOME"), xdg = keep("XDG_CACHE_HOME"), own = keep("RWKV_CACHE_DIR");
  for (const char* name : {"HOME", "XDG_CACHE_HOME", "RWKV_CACHE_DIR"}) unsetenv(name);
  const GemmCache cache(kPlace);
  EXPECT_EQ(cache.path(), "");
  EXPECT_EQ(cache.read(), "");
  EXPECT_NO_THROW(cache.add(std::string(kPlace) + "1   a\n"));
  if (!home.empty()) setenv("HOME", home.c_str(), 1);
  if (!xdg.empty()) setenv("XDG_CACHE_HOME", xdg.c_str(), 1);
  if (!own.empty()) setenv("RWKV_CACHE_DIR", own.c_str(), 1);
}

}  // namespace
}  // namespace rwkv
