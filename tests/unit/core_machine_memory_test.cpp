// Memory that is left, from files as the kernel shows them.

#include "kernels/core/machine_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMiB = size_t{1} << 20;

class MachineMemoryFiles : public testing::Test {
 protected:
  MachineMemoryFiles() { write("proc/meminfo", "MemTotal: 204800 kB\nMemAvailable: 102400 kB\n"); }
  ~MachineMemoryFiles() override { fs::remove_all(root_); }
  MachineMemoryFiles(const MachineMemoryFiles&) = delete;
  MachineMemoryFiles& operator=(const MachineMemoryFiles&) = delete;

  void write(const std::string& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  /// A group of version 2, in MiB.
  void group(const std::string& dir, const std::string& max, size_t used, size_t cache) {
    const std::string at = "sys/fs/cgroup/" + dir;
    write(at + "memory.max", max + "\n");
    write(at + "memory.current", str(used * kMiB, "\n"));
    write(at + "memory.stat", str("anon 5\ninactive_file ", cache * kMiB, "\nactive_file 7\n"));
  }
  void expect(size_t mib, const std::string& file) {
    const MachineMemory m = machine_memory(root_);
    EXPECT_EQ(m.available, mib * kMiB);
    EXPECT_EQ(m.limit_file, file.empty() ? "" : (root_ / file).string());
  }

  fs::path root_ = fs::temp_directory_path() / str("greylag-machine-memory-", ::getpid());
};

TEST_F(MachineMemoryFiles, WithoutGroupsTheMachineCounts) {
  expect(100, "");
  EXPECT_EQ(machine_memory(root_).words(), "what this machine has left");
  write("proc/meminfo", "MemTotal: 204800 kB\n");
  expect(0, "");  // nothing can be told
}

TEST_F(MachineMemoryFiles, TheTightestGroupCounts) {
  write("proc/self/cgroup", "0::/jobs/one\n");
  group("", "max", 1, 0);
  group("jobs/", "max", 1, 0);
  group("jobs/one/", "max", 1, 0);
  expect(100, "");
  // 60 used, of which 20 are cache; then its parent leaves less; then the machine does.
  group("jobs/one/", str(90 * kMiB), 60, 20);
  expect(50, "sys/fs/cgroup/jobs/one/memory.max");
  group("jobs/", str(70 * kMiB), 61, 1);
  expect(10, "sys/fs/cgroup/jobs/memory.max");
  write("proc/meminfo", "MemAvailable: 5120 kB\n");
  expect(5, "");
}

TEST_F(MachineMemoryFiles, InsideAContainerThePathIsForeign) {
  write("proc/self/cgroup", "0::/docker/0123\n");
  group("", str(64 * kMiB), 4, 0);
  expect(60, "sys/fs/cgroup/memory.max");
  const std::string words = machine_memory(root_).words();
  EXPECT_NE(words.find("container"), std::string::npos) << words;
  EXPECT_NE(words.find("sys/fs/cgroup/memory.max"), std::string::npos) << words;
}

TEST_F(MachineMemoryFiles, AUsedUpLimitIsKnown) {
  write("proc/self/cgroup", "0::/\n");
  group("", str(64 * kMiB), 65, 0);
  const MachineMemory m = machine_memory(root_);
  EXPECT_EQ(m.available, 1u);
  EXPECT_FALSE(m.limit_file.empty());
}

TEST_F(MachineMemoryFiles, GroupsOfVersion1) {
  write("proc/self/cgroup", "12:cpu,cpuacct:/a\n4:memory:/b\n1:name=systemd:/c\n");
  const std::string at = "sys/fs/cgroup/memory/";
  write(at + "memory.limit_in_bytes", "9223372036854771712\n");  // none
  write(at + "memory.usage_in_bytes", str(kMiB));
  expect(100, "");
  write(at + "b/memory.limit_in_bytes", str(80 * kMiB));
  write(at + "b/memory.usage_in_bytes", str(50 * kMiB));
  write(at + "b/memory.stat", str("cache 1\ntotal_inactive_file ", 10 * kMiB, "\n"));
  expect(40, "sys/fs/cgroup/memory/b/memory.limit_in_bytes");
}

TEST(ThisMachine, HasMemory) {
  EXPECT_GT(available_machine_memory(), kMiB);
}

}  // namespace
}  // namespace rwkv
