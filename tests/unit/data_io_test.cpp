// crc32 and files that appear complete or not at all.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "data/io/atomic_file.h"
#include "data/io/crc32.h"
#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;

uint32_t crc_of(std::string_view text, uint32_t before = 0) {
  return crc32_of<char>(std::span<const char>(text.data(), text.size()), before);
}

TEST(Crc32, KnownAnswers) {
  EXPECT_EQ(crc_of(""), 0u);
  EXPECT_EQ(crc_of("123456789"), 0xCBF43926u);
  EXPECT_EQ(crc_of("a"), 0xE8B7BE43u);
  EXPECT_EQ(crc_of("The quick brown fox jumps over the lazy dog"), 0x414FA339u);
  EXPECT_EQ(crc_of(std::string(32, '\0')), 0x190A55ADu);
}

TEST(Crc32, EqualsTheBitwiseDefinitionForAllSplits) {
  std::string data;
  const Rng rng(3, 4);
  for (uint64_t i = 0; i < 137; ++i) data += static_cast<char>(rng.below(i, 256));
  uint32_t slow = ~0u;
  for (const char ch : data) {
    slow ^= static_cast<unsigned char>(ch);
    for (int bit = 0; bit < 8; ++bit) slow = (slow >> 1) ^ ((slow & 1) ? 0xEDB88320u : 0);
  }
  slow = ~slow;
  for (size_t cut = 0; cut <= data.size(); ++cut) {
    const std::string_view v(data);
    ASSERT_EQ(crc_of(v.substr(cut), crc_of(v.substr(0, cut))), slow) << cut;
  }
}

TEST(AtomicFile, CommitReplacesAndAbandonKeeps) {
  TempDir dir;
  const std::string target = dir.file("a.txt");
  write_file_atomic(target, "one");
  {
    AtomicFile out(target);
    std::ofstream(out.temp_path()) << "half";
    EXPECT_EQ(read_file(target), "one");
  }
  EXPECT_EQ(read_file(target), "one");
  write_file_atomic(target, "two");
  EXPECT_EQ(read_file(target), "two");
  size_t files = 0;
  for ([[maybe_unused]] const auto& e : std::filesystem::directory_iterator(dir.path())) ++files;
  EXPECT_EQ(files, 1u);
}

TEST(AtomicFile, ErrorsNameThePath) {
  TempDir dir;
  const auto text = [&](const std::string& target) {
    return error_of<IoError>([&] { write_file_atomic(target, "x"); });
  };
  EXPECT_NE(text(dir.file("no/a.txt")).find("does not exist"), std::string::npos);
  std::filesystem::create_directory(dir.file("folder"));
  EXPECT_NE(text(dir.file("folder")).find("a folder has that name"), std::string::npos);
  EXPECT_NE(error_of<IoError>([&] { read_file(dir.file("none")); }).find("none"),
            std::string::npos);
  AtomicFile nothing(dir.file("b.txt"));
  EXPECT_THROW(nothing.commit(), IoError);  // no temporary was written
  EXPECT_FALSE(std::filesystem::exists(dir.file("b.txt")));
}

TEST(AtomicFile, DoesNotReplaceAPipe) {
  TempDir dir;
  const std::string pipe = dir.file("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THROW(AtomicFile{pipe}, IoError);
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
}

TEST(AtomicFile, WritesWhereALinkPoints) {
  TempDir dir;
  std::filesystem::create_directory(dir.file("disk"));
  std::filesystem::create_symlink("disk/a", dir.file("link"));  // a file that is not there yet
  std::filesystem::create_symlink(dir.file("link"), dir.file("second"));
  write_file_atomic(dir.file("second"), "one");
  EXPECT_TRUE(std::filesystem::is_symlink(dir.file("second")));
  EXPECT_TRUE(std::filesystem::is_symlink(dir.file("link")));
  EXPECT_FALSE(std::filesystem::is_symlink(dir.file("disk/a")));
  EXPECT_EQ(read_file(dir.file("disk/a")), "one");
  // The temporary is beside the target: renaming does not go from one disk to another.
  EXPECT_TRUE(AtomicFile(dir.file("link")).temp_path().starts_with(dir.file("disk/a."))) << "here";

  std::filesystem::create_symlink("circle", dir.file("circle"));
  EXPECT_NE(error_of<IoError>([&] { write_file_atomic(dir.file("circle"), "x"); }).find("circle"),
            std::string::npos);
  std::filesystem::create_symlink("none/b", dir.file("astray"));
  EXPECT_NE(error_of<IoError>([&] {
              write_file_atomic(dir.file("astray"), "x");
            }).find("none does not exist"),
            std::string::npos);
}

TEST(AtomicFile, SignalsLeaveNothingHalfWritten) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP})
    for (const bool finished_one : {false, true}) {
      TempDir dir;
      std::ofstream(dir.file("old")) << "old";
      const pid_t pid = ::fork();
      if (pid == 0) {
        ::dup2(::open(dir.file("err").c_str(), O_CREAT | O_WRONLY, 0600), 2);
        end_cleanly_on_signals("some-program");
        if (finished_one) write_file_atomic(dir.file("whole"), "whole");
        const NewFolder folder(dir.file("new/a"));
        const AtomicFile old(dir.file("old")), fresh(dir.file("new/a"));
        std::ofstream(old.temp_path()) << "half";
        std::ofstream(fresh.temp_path()) << "half";
        if (!std::filesystem::exists(fresh.temp_path())) ::_exit(1);
        std::thread([&] { ::raise(signal); }).join();
        ::_exit(2);
      }
      int status = 0;
      ::waitpid(pid, &status, 0);
      ASSERT_TRUE(WIFEXITED(status));
      EXPECT_EQ(WEXITSTATUS(status), 128 + signal);
      const std::string said = read_file(dir.file("err"));
      EXPECT_EQ(said, finished_one ? "some-program: interrupted: the files finished before are "
                                     "whole, nothing is half-written\n"
                                   : "some-program: interrupted: nothing was written\n");
      std::set<std::string> left;
      for (const auto& e : std::filesystem::directory_iterator(dir.path()))
        left.insert(e.path().filename());
      std::set<std::string> want = {"old", "err"};
      if (finished_one) want.insert("whole");
      EXPECT_EQ(left, want);
      EXPECT_EQ(read_file(dir.file("old")), "old");
    }
}

TEST(AtomicFile, AFolderWithoutAFileGoes) {
  TempDir dir;
  { const NewFolder folder(dir.file("new/a")); }
  EXPECT_FALSE(std::filesystem::exists(dir.file("new")));
  {
    const NewFolder folder(dir.file("new/a"));
    write_file_atomic(dir.file("new/a"), "x");
  }
  EXPECT_EQ(read_file(dir.file("new/a")), "x");
  std::filesystem::remove(dir.file("new/a"));
  { const NewFolder folder(dir.file("new/a")); }  // it was there before
  EXPECT_TRUE(std::filesystem::exists(dir.file("new")));
}

TEST(AtomicFile, RemovesTemporariesOfDeadProcessesOnly) {
  TempDir dir;
  const std::string target = dir.file("run.h5");
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(0);
  ::waitpid(pid, nullptr, 0);
  const std::string dead = target + "." + std::to_string(pid) + "-0.tmp";
  const std::string alive = target + "." + std::to_string(::getpid()) + "-99.tmp";
  const std::string other = dir.file("other.h5." + std::to_string(pid) + "-0.tmp");
  const std::string foreign = target + ".backup.tmp";
  for (const auto& f : {dead, alive, other, foreign}) std::ofstream(f) << "x";
  EXPECT_EQ(remove_stale_temporaries(target), 1u);
  EXPECT_FALSE(std::filesystem::exists(dead));
  for (const auto& f : {alive, other, foreign}) EXPECT_TRUE(std::filesystem::exists(f)) << f;
  EXPECT_EQ(remove_stale_temporaries(dir.file("no/such/folder/x")), 0u);
}

}  // namespace
}  // namespace rwkv
