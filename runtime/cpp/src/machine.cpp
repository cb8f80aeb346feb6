#include "machine.hpp"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace rescale::detail {
namespace {

// The beginning of a small file, on the stack: this runs for each frame.
struct Text {
  char data[8192];
  bool read(const char* path) {
    const int file = ::open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    const ssize_t n = ::read(file, data, sizeof data - 1);
    ::close(file);
    data[n > 0 ? n : 0] = '\0';
    return n > 0;
  }
  // The number behind a name at the start of a line.
  bool number(const char* name, unsigned long long& out) const {
    for (const char* at = data; at; at = std::strchr(at, '\n')) {
      at += *at == '\n';
      if (std::strncmp(at, name, std::strlen(name)) == 0) return std::sscanf(at + std::strlen(name), "%llu", &out) == 1;
    }
    return false;
  }
};

double cpu_quota() {
  Text file;
  double limit = 0, period = 0;
  if (file.read("/sys/fs/cgroup/cpu.max")) {
    if (std::sscanf(file.data, "%lf %lf", &limit, &period) == 2) return limit > 0 && period > 0 ? limit / period : 0;
    if (std::strncmp(file.data, "max", 3) == 0) return 0;
  }
  Text quota;
  if (!quota.read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") || !file.read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")) return 0;
  limit = std::atof(quota.data), period = std::atof(file.data);
  return limit > 0 && period > 0 ? limit / period : 0;
}

}  // namespace

int usable_threads() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int allowed = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  if (::sched_getaffinity(0, sizeof mask, &mask) == 0) allowed = CPU_COUNT(&mask);
  const double quota = cpu_quota();
  return std::max(1, quota > 0 ? std::min(allowed, static_cast<int>(std::ceil(quota))) : allowed);
}

std::uint64_t default_budget() {
  constexpr std::uint64_t kUnknown = ~std::uint64_t{0};
  std::uint64_t available = kUnknown;
  Text file;
  unsigned long long n = 0, used = 0, cached = 0;
  if (file.read("/proc/meminfo") && file.number("MemAvailable:", n)) available = std::uint64_t{n} << 10;
  if (file.read("/sys/fs/cgroup/memory.max") && std::sscanf(file.data, "%llu", &n) == 1 &&
      file.read("/sys/fs/cgroup/memory.current") && std::sscanf(file.data, "%llu", &used) == 1) {
    // Cached files count as used, though they give way.
    if (file.read("/sys/fs/cgroup/memory.stat")) file.number("inactive_file ", cached);
    used -= std::min(used, cached);
    available = std::min(available, std::uint64_t{n - std::min(n, used)});
  }
  return available == kUnknown ? std::uint64_t{2} << 30 : available / 2;
}

}  // namespace rescale::detail
