// A device that is the host, FAKE_CUDA_DEVICES of them, each with FAKE_CUDA_BYTES a piece of memory; a copy fails where
// FAKE_CUDA_COPIES are under way. As in rescale/cuda/fake.py, work is put off until somebody waits for it, and is then run as late
// as streams and events allow. Noted as wrong is work of two streams on the same bytes that no event puts in order, and memory that
// goes while work on it is under way. Host memory counts as page-locked: copies from and to it are put off too.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "fake_cuda.hpp"

namespace {

using Set = std::set<std::uint64_t>;

struct Work {
  std::string name;
  cudaStream_t stream;
  std::vector<Span> reads, writes;
  std::function<void()> run;
  Set before;  // what must be done when it begins
};

std::recursive_mutex lock;
std::map<std::uint64_t, Work> pending;
std::map<cudaStream_t, Set> streams{{nullptr, {}}};  // what is in each
std::map<cudaEvent_t, Set> events;                   // what each stands for
std::map<void*, std::size_t> sizes;
std::uint64_t next_work = 0;
std::uintptr_t next_handle = 0;
std::string objections;
int allocated_on = -1;
thread_local int current = 0;

using Guard = std::lock_guard<std::recursive_mutex>;

long setting(const char* name, long otherwise) { return std::getenv(name) ? std::atol(std::getenv(name)) : otherwise; }

bool overlap(const Span& a, const Span& b) {
  const auto x = reinterpret_cast<std::uintptr_t>(a.from), y = reinterpret_cast<std::uintptr_t>(b.from);
  return x < y + b.size && y < x + a.size;
}

bool overlap(const std::vector<Span>& a, const std::vector<Span>& b) {
  return std::any_of(a.begin(), a.end(), [&](const Span& x) {
    return std::any_of(b.begin(), b.end(), [&](const Span& y) { return overlap(x, y); });
  });
}

Set& in(cudaStream_t stream) {
  if (!streams.count(stream)) objections += "a stream was used that does not exist\n";
  return streams[stream];
}

// Runs some work and what must come before it, the latest first wherever there is a choice.
void finish(const Set& wanted) {
  for (;;) {
    const auto found = std::find_if(pending.rbegin(), pending.rend(), [&](const auto& entry) {
      const Set& before = entry.second.before;
      return wanted.count(entry.first) && std::none_of(before.begin(), before.end(), [](auto i) { return pending.count(i); });
    });
    if (found == pending.rend()) return;
    found->second.run();
    pending.erase(found->first);
  }
}

}  // namespace

void fake_cuda_put(const std::string& name, cudaStream_t stream, std::vector<Span> reads, std::vector<Span> writes,
                   std::function<void()> run) {
  const Guard guard(lock);
  Set& before = in(stream);
  for (const auto& [index, other] : pending) {
    const bool conflict = overlap(writes, other.reads) || overlap(writes, other.writes) || overlap(reads, other.writes);
    if (conflict && !before.count(index)) objections += name + " is not ordered after " + other.name + "\n";
  }
  pending[next_work] = {name, stream, std::move(reads), std::move(writes), std::move(run), before};
  before.insert(next_work++);
}

void fake_cuda_require_idle(Span bytes, const std::string& what) {
  const Guard guard(lock);
  for (const auto& [index, work] : pending) {
    if (!overlap({bytes}, work.reads) && !overlap({bytes}, work.writes)) continue;
    objections += what + " while " + work.name + " is under way\n";
  }
}

extern "C" {

// For tests: the calling thread's device, that of the last allocation, how many streams and events there are, how much work nobody
// has waited for, and what was wrong since the last question.
int fake_cuda_device() { return current; }
int fake_cuda_last_device() { return allocated_on; }
int fake_cuda_held() { return static_cast<int>(streams.size() - 1 + events.size()); }
int fake_cuda_under_way() { return static_cast<int>(pending.size()); }
const char* fake_cuda_objections() {
  static std::string told;
  told = std::exchange(objections, {});
  return told.c_str();
}

const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorInsufficientDriver";
}
const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "out of memory" : "CUDA driver version is insufficient";
}
cudaError_t cudaGetDeviceCount(int* n) {
  *n = static_cast<int>(setting("FAKE_CUDA_DEVICES", 1));
  return *n ? cudaSuccess : cudaErrorInsufficientDriver;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* about, int) { return std::strcpy(about->name, "Fake GPU"), cudaSuccess; }
cudaError_t cudaGetDevice(int* n) { return *n = current, cudaSuccess; }
cudaError_t cudaSetDevice(int n) { return current = n, cudaSuccess; }

cudaError_t cudaMalloc(void** p, std::size_t n) {
  const Guard guard(lock);
  if (static_cast<long>(n) > setting("FAKE_CUDA_BYTES", 1L << 40)) return cudaErrorMemoryAllocation;
  allocated_on = current;
  *p = std::aligned_alloc(256, (n + 255) / 256 * 256);
  return sizes[*p] = n, cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  const Guard guard(lock);
  if (p) fake_cuda_require_idle({p, sizes[p]}, "memory was freed");
  return sizes.erase(p), std::free(p), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
  const Guard guard(lock);
  if (fake_cuda_under_way() >= setting("FAKE_CUDA_COPIES", 1 << 20)) return cudaErrorMemoryAllocation;
  const char* name = kind == cudaMemcpyHostToDevice ? "a copy in" : "a copy out";
  fake_cuda_put(name, stream, {{from, n}}, {{to, n}}, [=] { std::memcpy(to, from, n); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Guard guard(lock);
  *stream = reinterpret_cast<cudaStream_t>(++next_handle);
  return streams[*stream] = {}, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Guard guard(lock);
  return streams.erase(stream), cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Guard guard(lock);
  return finish(in(stream)), cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Guard guard(lock);
  return in(stream).insert(events[event].begin(), events[event].end()), cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const Guard guard(lock);
  *event = reinterpret_cast<cudaEvent_t>(++next_handle);
  return events[*event] = {}, cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Guard guard(lock);
  return events[event] = in(stream), cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Guard guard(lock);
  return finish(events[event]), cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Guard guard(lock);
  return events.erase(event), cudaSuccess;
}
}
