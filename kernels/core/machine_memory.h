#pragma once
/// What memory the machine, or the container around this process, still has.

#include <cstddef>
#include <filesystem>
#include <string>

namespace rwkv {

struct MachineMemory {
  /// Bytes that are left to this process and others like it; 0 if nothing can be told.
  size_t available = 0;
  /// The control group (of a container, a job, a user) that leaves no more than that: the file
  /// with its limit. Empty: the machine itself has no more, or nothing can be told.
  std::string limit_file;

  /// "what this machine has left", or "what the limit of this container or job leaves
  /// (/sys/fs/cgroup/memory.max)".
  std::string words() const;
};

/// The kernel's MemAvailable, and what the control groups (versions 1 and 2) of this process leave;
/// page cache that can be dropped counts as free. `root` is where /proc and /sys are looked for.
MachineMemory machine_memory(const std::filesystem::path& root = "/");
/// machine_memory().available
size_t available_machine_memory();

}  // namespace rwkv
