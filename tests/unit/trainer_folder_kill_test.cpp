// A checkpoint folder takes the place of another: the process is killed ahead of every call that
// changes the file system, with and without RENAME_EXCHANGE. What the next run finds must be whole.

#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "kernels/core/error.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/checkpoint.h"
#include "trainer/shard_checkpoint.h"

namespace {

int calls_left = -1;       // until SIGKILL; negative: never
bool can_exchange = true;  // of the file system
int failing_rename = -1;   // the rename that fails, counted from 0

void count_call() {
  if (calls_left == 0) raise(SIGKILL);
  if (calls_left > 0) --calls_left;
}

template <class Fn>
Fn* next(const char* name) {
  return reinterpret_cast<Fn*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// These stand in front of the C library's, also for std::filesystem.
extern "C" {

int rename(const char* from, const char* to) noexcept {
  count_call();
  if (failing_rename >= 0 && failing_rename-- == 0) {
    errno = EIO;
    return -1;
  }
  return next<int(const char*, const char*)>("rename")(from, to);
}

int renameat2(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) noexcept {
  count_call();
  if (!can_exchange) {
    errno = EINVAL;
    return -1;
  }
  return next<int(int, const char*, int, const char*, unsigned)>("renameat2")(from_dir, from,
                                                                              to_dir, to, flags);
}

int unlinkat(int dir, const char* name, int flags) noexcept {
  count_call();
  return next<int(int, const char*, int)>("unlinkat")(dir, name, flags);
}

}  // extern "C"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using test::file_bytes;
using test::ScratchDir;
using test::write_bytes;

constexpr int kFiles = 3;

void fill(const std::string& folder, const std::string& text) {
  for (int i = 0; i < kFiles; ++i) write_bytes(str(folder, "/", i), text);
}

/// What all files of a folder say; "damaged" unless they say the same.
std::string content(const std::string& folder) {
  std::string text;
  for (int i = 0; i < kFiles; ++i) {
    const std::string file = str(folder, "/", i);
    if (!fs::exists(file)) return "damaged";
    if (i > 0 && file_bytes(file) != text) return "damaged";
    text = file_bytes(file);
  }
  return text;
}

size_t entries(const std::string& dir) {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(dir)) ++n;
  return n;
}

/// Replaces the folder in a child process; true if it was killed ahead of call number `calls`.
bool replace_and_die(const std::string& target, int calls, bool exchange) {
  const pid_t pid = fork();
  if (pid == 0) {
    can_exchange = exchange;
    CheckpointFolder folder(target);
    fill(folder.temp_path(), "new");
    calls_left = calls;
    folder.commit();
    _exit(0);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << status;
  return WIFSIGNALED(status);
}

class Replacing : public testing::TestWithParam<bool> {};

TEST_P(Replacing, AKillAheadOfAnyCallLeavesAWholeOne) {
  int calls = 0, found_old = 0, found_new = 0, recovered = 0;
  for (bool killed = true; killed; ++calls) {
    ASSERT_LT(calls, 100);
    const ScratchDir dir("folder_kill");
    const std::string target = shard_checkpoint_path(dir.str(), 20);
    fs::create_directory(target);
    fill(target, "old");
    killed = replace_and_die(target, calls, GetParam());
    if (!fs::exists(target)) ++recovered;
    // As a run does that starts.
    recover_replaced_checkpoints(dir.str());
    remove_stale_run_temporaries(dir.str());
    const auto found = list_checkpoints(dir.str());
    ASSERT_EQ(found.size(), 1u) << "killed ahead of call " << calls;
    EXPECT_EQ(found[0].path, target);
    const std::string text = content(target);
    (text == "new" ? found_new : found_old) += 1;
    EXPECT_TRUE(text == "new" || (text == "old" && killed)) << text << ", call " << calls;
    EXPECT_EQ(entries(dir.str()), 1u) << "nothing else is left, call " << calls;
  }
  EXPECT_GT(found_old, 0);
  EXPECT_GT(found_new, 1) << "some kills came after the new one had its name";
  EXPECT_EQ(recovered > 0, !GetParam()) << "an exchange leaves no moment without the name";
}

INSTANTIATE_TEST_SUITE_P(Exchange, Replacing, testing::Bool());

TEST(FolderRename, ThatFailsLeavesTheOldOne) {
  for (const int n : {0, 1}) {
    const ScratchDir dir("folder_fail");
    const std::string target = shard_checkpoint_path(dir.str(), 20);
    fs::create_directory(target);
    fill(target, "old");
    can_exchange = false;
    {
      CheckpointFolder folder(target);
      fill(folder.temp_path(), "new");
      failing_rename = n;
      EXPECT_THROW(folder.commit(), IoError) << n;
    }
    can_exchange = true;
    failing_rename = -1;
    EXPECT_EQ(content(target), "old") << n;
    EXPECT_EQ(entries(dir.str()), 1u) << n;
  }
}

}  // namespace
}  // namespace rwkv
