#pragma once
/// Memory: what a run needs, what the machine has.

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/backend.h"
#include "trainer/comm/comm.h"
#include "trainer/train_step.h"

namespace rwkv {

/// available_machine_memory() for this process alone: its address-space limit counts, too.
size_t available_memory();
/// Resident bytes of this process now; 0 if that cannot be told.
size_t resident_memory();

/// "needs 3.1 GiB: activations 1.9 GiB, optimizer moments 820.1 MiB, ..." (`most` items, 0: all)
std::string describe_memory(std::span<const MemoryItem> items, size_t most);
size_t total_bytes(std::span<const MemoryItem> items);

/// limit_mib of the config, or available_memory().
size_t memory_limit(int64_t limit_mib);
/// Throws ConfigError naming the three largest consumers and what to change if the items do not
/// fit into `limit` (0: unknown, anything fits). `advice` is added to the message.
void require_memory(std::span<const MemoryItem> items, size_t limit,
                    const std::string& advice = "");
/// The same for a GPU: throws DeviceError if the items do not fit into what is free, ConfigError if
/// they fit but exceed limit_mib (0: no such limit).
void require_device_memory(std::span<const MemoryItem> items, const backend::DeviceMemory& device,
                           int64_t limit_mib, const std::string& advice = "");
/// The same for what a run on GPUs keeps on the host. `collects`: rank 0 of several keeps copies
/// for checkpoints of one file or samples, and the message says how to do without.
void require_host_memory(std::span<const MemoryItem> items, size_t limit, bool collects);
/// What batch would fit into `limit` bytes instead of the step's, which does not: " With
/// train.batch=3 it needs 1.2 GiB.", or that none does. Plans a few steps; allocates nothing.
std::string smaller_batch_advice(const TrainStep& step, size_t limit);
/// What allocate() of the step will need against what its device has, and on CUDA the copies that
/// the host keeps against what the host has. limit_mib as in limits.memory_mib: it replaces what a
/// host says is available; on CUDA it limits the device's memory. Throws ConfigError, DeviceError.
void require_memory(const TrainStep& step, int64_t limit_mib);
/// The same for what ranks keep in the memory of the machine that they share (limit_mib, which
/// counts for each rank, as in require_memory: on the CPU it replaces what the machine says).
/// All ranks call; throws ConfigError on all of them, with the same message.
void require_machine_memory(HostGroup& group, const TrainStep& step, int64_t limit_mib);

/// What a rank keeps in its machine's memory.
struct HostShare {
  std::string machine;  ///< "node1:..." is what messages call node1; the same on all its ranks
  size_t needs = 0;
  size_t available = 0;  ///< as this rank sees it; 0: unknown
};
/// Bytes by which the ranks of a machine exceed what it has, and words that name it, them and both
/// sizes.
struct HostExcess {
  std::vector<int> ranks;
  size_t bytes;
  std::string words;
};
/// Of the machine with the lowest rank whose ranks do not fit together, if there is one.
std::optional<HostExcess> find_host_excess(std::span<const HostShare> ranks);
/// Of this machine, zero-padded: its host name and the number that its kernel drew at its start,
/// since hosts may have equal names. Containers on one machine differ in their names.
using MachineName = std::array<char, 192>;
MachineName this_machine();
/// How many ranks share the machine of each. All ranks call.
std::vector<int> ranks_of_machines(HostGroup& group);

/// Bytes that a run may take on the device; 0: unknown.
size_t memory_limit(Device device, int64_t limit_mib);

}  // namespace rwkv
