#include "trainer/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>

#include "kernels/core/arena.h"
#include "kernels/core/error.h"
#include "kernels/core/machine_memory.h"

namespace rwkv {
namespace {

constexpr const char* kLanesAdvice = " On the GPU kernels.lanes=1 saves memory, too.";
constexpr const char* kAdvice =
    "Lower train.batch or train.context (more train.micro_batches keep the tokens per step), set "
    "train.grad_checkpointing=block or train.loss_chunk_tokens, or take a smaller model";

constexpr const char* kNoCopiesAdvice =
    "dist.checkpoint=parallel and sample.every=0, so that rank 0 keeps no copies of what all ranks "
    "hold";

bool keeps_copies(const TrainStep& step) {
  const TrainStepOptions& o = step.options();
  return o.planned_ranks > 1 && o.collects && (o.comm == nullptr || o.comm->rank() == 0);
}

}  // namespace

MachineName this_machine() {
  std::array<char, 80> name{};
  ::gethostname(name.data(), name.size() - 1);
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  MachineName out{};
  std::snprintf(out.data(), out.size(), "%s:%.80s", name.data(), boot.c_str());
  return out;
}

size_t available_memory() {
  const size_t machine = available_machine_memory();
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return machine;
  const auto mine = static_cast<size_t>(limit.rlim_cur);
  return machine == 0 ? mine : std::min(machine, mine);
}

size_t resident_memory() {
  std::ifstream in("/proc/self/statm");
  size_t pages = 0, resident = 0;
  if (!(in >> pages >> resident)) return 0;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

size_t total_bytes(std::span<const MemoryItem> items) {
  size_t sum = 0;
  for (const auto& i : items) sum += i.bytes;
  return sum;
}

std::string describe_memory(std::span<const MemoryItem> items, size_t most) {
  std::string out = str("needs ", format_bytes(total_bytes(items)), ":");
  const size_t n = most == 0 ? items.size() : std::min(most, items.size());
  for (size_t i = 0; i < n; ++i)
    out += str(i == 0 ? " " : ", ", items[i].name, " ", format_bytes(items[i].bytes));
  return out;
}

size_t memory_limit(int64_t limit_mib) {
  return limit_mib > 0 ? static_cast<size_t>(limit_mib) << 20 : available_memory();
}

size_t memory_limit(Device device, int64_t limit_mib) {
  if (device == Device::kCpu) return memory_limit(limit_mib);
  const size_t wanted = static_cast<size_t>(limit_mib) << 20;
  try {
    const size_t free = backend::cuda_memory().free;
    return wanted > 0 ? std::min(wanted, free) : free;
  } catch (const DeviceError&) {
    return wanted;
  }
}

void require_memory(std::span<const MemoryItem> items, size_t limit, const std::string& advice) {
  RWKV_CHECK(limit == 0 || total_bytes(items) <= limit, ConfigError, "the run ",
             describe_memory(items, 3), "; only ", format_bytes(limit), " are available. ", kAdvice,
             advice);
}

void require_host_memory(std::span<const MemoryItem> items, size_t limit, bool collects) {
  RWKV_CHECK(limit == 0 || total_bytes(items) <= limit, ConfigError,
             "on the host (not on the GPU) the run ", describe_memory(items, 3), "; only ",
             format_bytes(limit), " are available. ",
             collects ? str("Set ", kNoCopiesAdvice, ", free memory there, or take a smaller model")
                      : "Free memory there, spread the model over more ranks with "
                        "dist.checkpoint=parallel and sample.every=0, or take a smaller model");
}

std::string smaller_batch_advice(const TrainStep& step, size_t limit) {
  TrainStepOptions o = step.given_options();  // another batch may have another number of lanes
  const auto needs = [&](int64_t batch) {
    o.batch = batch;
    return total_bytes(TrainStep(step.model().config(), o).memory());
  };
  // Needs grow with the batch: halve the range between one that fits and one that does not.
  int64_t fits = 0, too_large = o.batch;
  while (too_large - fits > 1) {
    const int64_t middle = fits + (too_large - fits) / 2;
    (needs(middle) <= limit ? fits : too_large) = middle;
  }
  if (fits == 0) return " Not even train.batch=1 fits here.";
  return str(" The largest train.batch that fits here is ", fits, ", which needs ",
             format_bytes(needs(fits)), ".");
}

void require_device_memory(std::span<const MemoryItem> items, const backend::DeviceMemory& device,
                           int64_t limit_mib, const std::string& advice) {
  const size_t needed = total_bytes(items), limit = static_cast<size_t>(limit_mib) << 20;
  // Less than this is free: somebody else is there (a driver keeps some hundred MiB for itself).
  const bool shared = device.free < device.total - device.total / 16;
  RWKV_CHECK(needed <= device.free, DeviceError, "on the GPU the run ", describe_memory(items, 3),
             "; only ", format_bytes(device.free), " of its ", format_bytes(device.total),
             " are free", shared ? " (see nvidia-smi for who holds the rest)" : "", ". ", kAdvice,
             ".", kLanesAdvice, advice);
  RWKV_CHECK(limit == 0 || needed <= limit, ConfigError, "on the GPU the run ",
             describe_memory(items, 3), "; limits.memory_mib allows ", format_bytes(limit), ". ",
             kAdvice, ".", kLanesAdvice, advice);
}

void require_memory(const TrainStep& step, int64_t limit_mib) {
  if (step.options().device == Device::kCpu) {
    const auto items = step.memory();
    const size_t limit = memory_limit(limit_mib);
    if (limit == 0 || total_bytes(items) <= limit) return;
    require_memory(items, limit,
                   str(keeps_copies(step) ? str(", or set ", kNoCopiesAdvice) : "", ".",
                       smaller_batch_advice(step, limit)));
  }
  const auto items = step.memory();
  const backend::DeviceMemory device = backend::cuda_memory();
  const size_t limit =
      limit_mib > 0 ? std::min(device.free, static_cast<size_t>(limit_mib) << 20) : device.free;
  require_device_memory(items, device, limit_mib,
                        total_bytes(items) <= limit ? "" : smaller_batch_advice(step, limit));
  require_host_memory(step.host_memory(), available_memory(), keeps_copies(step));
}

std::optional<HostExcess> find_host_excess(std::span<const HostShare> ranks) {
  std::vector<std::string> seen;
  for (const HostShare& first : ranks) {
    if (std::ranges::find(seen, first.machine) != seen.end()) continue;
    seen.push_back(first.machine);
    std::vector<int> there;
    size_t needs = 0, available = SIZE_MAX, largest = 0;
    for (size_t r = 0; r < ranks.size(); ++r) {
      if (ranks[r].machine != first.machine) continue;
      there.push_back(static_cast<int>(r));
      needs += ranks[r].needs;
      if (ranks[r].available > 0) available = std::min(available, ranks[r].available);
      if (ranks[r].needs > ranks[largest].needs || there.size() == 1) largest = r;
    }
    if (needs <= available) continue;
    const std::string name = first.machine.substr(0, first.machine.find(':'));
    return HostExcess{there, needs - available,
                      str(ranks_text(there), " on ", name,
                          there.size() == 1 ? " needs " : " together need ", format_bytes(needs),
                          " of its memory (rank ", largest, " ", format_bytes(ranks[largest].needs),
                          "); only ", format_bytes(available), " are available")};
  }
  return std::nullopt;
}

std::vector<int> ranks_of_machines(HostGroup& group) {
  const MachineName mine = this_machine();
  std::vector<MachineName> all(static_cast<size_t>(group.size()));
  group.all_gather(&mine, sizeof mine, all.data());
  std::vector<int> counts;
  for (const MachineName& m : all) counts.push_back(static_cast<int>(std::ranges::count(all, m)));
  return counts;
}

void require_machine_memory(HostGroup& group, const TrainStep& step, int64_t limit_mib) {
  const bool cpu = step.options().device == Device::kCpu;
  if (cpu && limit_mib > 0) return;
  struct Mine {
    MachineName machine;
    uint64_t needs, available;
  };
  const Mine mine = {this_machine(), total_bytes(cpu ? step.memory() : step.host_memory()),
                     available_machine_memory()};
  std::vector<Mine> all(static_cast<size_t>(group.size()));
  group.all_gather(&mine, sizeof mine, all.data());
  std::vector<HostShare> shares;
  for (const Mine& m : all) shares.push_back({m.machine.data(), m.needs, m.available});
  const auto excess = find_host_excess(shares);
  if (!excess) return;
  // Rank 0 knows best what to do; its words are everybody's.
  std::string text;
  if (group.rank() == 0) {
    text =
        str(excess->words, ". ", cpu ? kAdvice : "Free memory there",
            ", spread the ranks over more machines",
            excess->ranks.front() == 0 && keeps_copies(step) ? str(", set ", kNoCopiesAdvice) : "",
            cpu ? "." : ", or take a smaller model");
    // What grows with the batch does so on every rank alike.
    const size_t each = (excess->bytes + excess->ranks.size() - 1) / excess->ranks.size();
    if (cpu) text += smaller_batch_advice(step, mine.needs > each ? mine.needs - each : 0);
  }
  text = group.broadcast(text);
  agree(&group, [&] { throw ConfigError(text); });
}

}  // namespace rwkv
