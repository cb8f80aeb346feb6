// What this process may use of the machine: what the scheduler allows, and what its control group pays for.

#pragma once

#include <cstdint>

namespace rescale::detail {

int usable_threads();            // CPUs in the affinity mask, at most the CPU quota rounded up; at least 1
std::uint64_t default_budget();  // bytes: half of what is available; 2 GiB where that is unknown. Allocates nothing.

}  // namespace rescale::detail
