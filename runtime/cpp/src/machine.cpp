#include "machine.hpp"

#include <fcntl.h>
#ifdef __linux__
#include <sched.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace rescale::detail {
namespace {

// From here on a control group of version 1 has no limit: it says the largest number of whole pages.
constexpr unsigned long long kNoLimit = 1ULL << 62;

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
  bool read(const char* folder, const char* name) {
    char path[4352];
    const int n = std::snprintf(path, sizeof path, "%s/%s", folder, name);
    return n > 0 && n < static_cast<int>(sizeof path) && read(path);
  }
  bool number(unsigned long long& out) const { return std::sscanf(data, "%llu", &out) == 1; }
  // The number behind a name at the start of a line.
  bool number(const char* name, unsigned long long& out) const {
    for (const char* at = data; at; at = std::strchr(at, '\n')) {
      at += *at == '\n';
      if (std::strncmp(at, name, std::strlen(name)) == 0) return std::sscanf(at + std::strlen(name), "%llu", &out) == 1;
    }
    return false;
  }
};

// Whether a list between commas holds a word; the empty word is in the empty list alone.
bool lists(const char* begin, const char* end, const char* word) {
  const std::size_t length = std::strlen(word);
  for (const char* at = begin;; ++at) {
    const char* comma = std::find(at, end, ',');
    if (static_cast<std::size_t>(comma - at) == length && std::strncmp(at, word, length) == 0) return true;
    if (comma == end) return false;
    at = comma;
  }
}

// Visits the folders of the control groups that hold this process, the outermost first: of version 2 (an empty kind), or of
// a kind of version 1. Each one's limits hold for it.
template <class Visit>
void each_group(const MachineFiles& files, const char* kind, const Visit& visit) {
  char folder[4096];
  int length = std::snprintf(folder, sizeof folder, "%s%s%s", files.groups, *kind ? "/" : "", kind);
  if (length < 0 || length >= static_cast<int>(sizeof folder)) return;
  visit(folder);
  Text own;
  if (!own.read(files.own)) return;
  for (const char* line = own.data; *line;) {
    const char* end = std::strchr(line, '\n');
    if (!end) end = line + std::strlen(line);
    const char* kinds = std::find(line, end, ':');
    const char* path = kinds == end ? end : std::find(kinds + 1, end, ':');
    if (path != end && lists(kinds + 1, path, kind)) {
      // Groups outside what this process sees of the tree are not there.
      static constexpr char kUp[] = "/..";
      if (std::search(path, end, kUp, kUp + 3) != end) return;
      for (const char* at = path + 1; at < end;) {
        const char* slash = std::find(at, end, '/');
        if (slash > at) {
          const int added = static_cast<int>(slash - at);
          if (length + 1 + added >= static_cast<int>(sizeof folder)) return;
          std::snprintf(folder + length, sizeof folder - static_cast<std::size_t>(length), "/%.*s", added, at);
          length += 1 + added;
          visit(folder);
        }
        at = slash + 1;
      }
      return;
    }
    line = *end ? end + 1 : end;
  }
}

// CPUs that the control groups may use; 0 without a limit.
double cpu_quota(const MachineFiles& files) {
  double found = 0;
  const auto take = [&found](double limit, double period) {
    if (limit > 0 && period > 0) found = found > 0 ? std::min(found, limit / period) : limit / period;
  };
  each_group(files, "", [&](const char* folder) {
    Text file;
    double limit = 0, period = 0;
    if (file.read(folder, "cpu.max") && std::sscanf(file.data, "%lf %lf", &limit, &period) == 2) take(limit, period);
  });
  each_group(files, "cpu", [&](const char* folder) {
    Text limit, period;
    if (limit.read(folder, "cpu.cfs_quota_us") && period.read(folder, "cpu.cfs_period_us"))
      take(std::atof(limit.data), std::atof(period.data));
  });
  return found;
}

}  // namespace

int usable_threads(const MachineFiles& files) {
  int allowed = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
#ifdef __linux__
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (::sched_getaffinity(0, sizeof mask, &mask) == 0) allowed = CPU_COUNT(&mask);
#endif
  const double quota = cpu_quota(files);
  return std::max(1, quota > 0 ? std::min(allowed, static_cast<int>(std::ceil(quota))) : allowed);
}

std::uint64_t default_budget(const MachineFiles& files) {
  constexpr std::uint64_t kUnknown = ~std::uint64_t{0};
  struct Account {
    const char *kind, *most, *used, *cached;
  };
  static constexpr Account kAccounts[] = {{"", "memory.max", "memory.current", "inactive_file "},
                                          {"memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "}};
  std::uint64_t available = kUnknown;
  Text meminfo;
  unsigned long long n = 0;
  if (meminfo.read(files.meminfo) && meminfo.number("MemAvailable:", n)) available = std::uint64_t{n} << 10;
  for (const Account& account : kAccounts) {
    each_group(files, account.kind, [&](const char* folder) {
      Text file;
      unsigned long long most = 0, used = 0, cached = 0;
      if (!file.read(folder, account.most) || !file.number(most) || most >= kNoLimit) return;
      if (!file.read(folder, account.used) || !file.number(used)) return;
      // Cached files count as used, though they give way.
      if (file.read(folder, "memory.stat")) file.number(account.cached, cached);
      used -= std::min(used, cached);
      available = std::min(available, std::uint64_t{most - std::min(most, used)});
    });
  }
  return available == kUnknown ? std::uint64_t{2} << 30 : available / 2;
}

}  // namespace rescale::detail
