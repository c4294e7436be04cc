#include "kernels/core/machine_memory.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <optional>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

std::optional<size_t> read_number(const fs::path& file) {
  std::ifstream in(file);
  size_t n = 0;
  if (in >> n) return n;
  return std::nullopt;  // missing, or "max"
}

/// Value after `key` in a file of "key value" lines.
std::optional<size_t> read_field(const fs::path& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string k; in >> k;) {
    size_t n = 0;
    if (k == key && in >> n) return n;
    in.ignore(4096, '\n');
  }
  return std::nullopt;
}

/// Files of a version of control groups.
struct GroupFiles {
  const char *folder, *limit, *used, *cache;  ///< cache: member of memory.stat
};
constexpr GroupFiles kVersion1 = {"sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                  "memory.usage_in_bytes", "total_inactive_file"};
constexpr GroupFiles kVersion2 = {"sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"};

/// What one control group leaves, if it limits anything. Page cache that can be dropped is free.
std::optional<size_t> group_room(const fs::path& dir, const GroupFiles& files) {
  const auto max = read_number(dir / files.limit);
  const auto now = read_number(dir / files.used);
  if (!max || !now) return std::nullopt;
  const size_t droppable = read_field(dir / "memory.stat", files.cache).value_or(0);
  const size_t taken = *now > droppable ? *now - droppable : 0;
  return *max > taken ? *max - taken : 0;
}

}  // namespace

std::string MachineMemory::words() const {
  if (limit_file.empty()) return "what this machine has left";
  return str("what the limit of this container or job leaves (", limit_file, ")");
}

MachineMemory machine_memory(const fs::path& root) {
  size_t room = SIZE_MAX;
  MachineMemory found;
  if (const auto kib = read_field(root / "proc/meminfo", "MemAvailable:")) room = *kib * 1024;

  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && controllers.find("memory") == std::string::npos) continue;
    const GroupFiles& files = controllers.empty() ? kVersion2 : kVersion1;
    // Every group up to the root may set a limit; inside a container the path can be foreign.
    fs::path relative = fs::path(line.substr(second + 1)).relative_path();
    while (true) {
      fs::path dir = root / files.folder;
      if (!relative.empty()) dir /= relative;
      if (const auto left = group_room(dir, files); left && *left < room) {
        room = *left;
        found.limit_file = (dir / files.limit).string();
      }
      if (relative.empty()) break;
      relative = relative.parent_path();
    }
  }
  // A limit that is used up is known, too.
  found.available = room == SIZE_MAX ? 0 : std::max<size_t>(room, 1);
  return found;
}

size_t available_machine_memory() {
  return machine_memory().available;
}

}  // namespace rwkv
