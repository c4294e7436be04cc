// Entry point of every test program: like gtest_main, plus a summary of the skipped tests and
// exit code 77 (which ctest counts as "skipped") when nothing at all could run.

#include <gtest/gtest.h>

#include <cstdio>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const int rc = RUN_ALL_TESTS();
  const auto& unit = *testing::UnitTest::GetInstance();
  if (unit.skipped_test_count() > 0)
    std::printf("%d of %d tests skipped\n", unit.skipped_test_count(), unit.test_to_run_count());
  if (rc == 0 && unit.test_to_run_count() > 0 &&
      unit.skipped_test_count() == unit.test_to_run_count())
    return 77;
  return rc;
}
