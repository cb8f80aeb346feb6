// What this process may use of the machine: what the scheduler allows, and what its control groups pay for.

#pragma once

#include <cstdint>

namespace rescale::detail {

// Where the kernel tells it.
struct MachineFiles {
  const char* meminfo = "/proc/meminfo";
  const char* groups = "/sys/fs/cgroup";   // where control groups are mounted, of version 2 or 1
  const char* own = "/proc/self/cgroup";   // which of them hold this process
};

// CPUs in the affinity mask, at most the CPU quota rounded up; at least 1.
int usable_threads(const MachineFiles& files = {});
// Bytes: half of what is available; 2 GiB where that is unknown. Allocates nothing.
std::uint64_t default_budget(const MachineFiles& files = {});

}  // namespace rescale::detail
