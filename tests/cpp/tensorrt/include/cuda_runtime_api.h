// A device that is the host: FAKE_CUDA_DEVICES of them, each with FAKE_CUDA_BYTES a piece of memory. From copy FAKE_CUDA_COPIES on,
// each of a run's fails.
#pragma once

#include <cstdlib>
#include <cstring>

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
struct cudaDeviceProp {
  char name[256];
};

inline long fake_cuda(const char* name, long otherwise) { return std::getenv(name) ? std::atol(std::getenv(name)) : otherwise; }

inline thread_local int fake_cuda_current = 0;
inline int fake_cuda_allocated_on = -1, fake_cuda_handles = 0, fake_cuda_copies = 0;

// For tests: the calling thread's device, that of the last allocation, how many streams and events there are, and how many copies
// nobody has waited for.
#define FAKE_CUDA_TELLS extern "C" __attribute__((visibility("default"), used)) inline int
FAKE_CUDA_TELLS fake_cuda_device() { return fake_cuda_current; }
FAKE_CUDA_TELLS fake_cuda_last_device() { return fake_cuda_allocated_on; }
FAKE_CUDA_TELLS fake_cuda_held() { return fake_cuda_handles; }
FAKE_CUDA_TELLS fake_cuda_under_way() { return fake_cuda_copies; }

inline const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorInsufficientDriver";
}
inline const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "out of memory" : "CUDA driver version is insufficient";
}
inline cudaError_t cudaGetDeviceCount(int* n) {
  return *n = int(fake_cuda("FAKE_CUDA_DEVICES", 1)), *n ? cudaSuccess : cudaErrorInsufficientDriver;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { return std::strcpy(p->name, "Fake GPU"), cudaSuccess; }
inline cudaError_t cudaGetDevice(int* n) { return *n = fake_cuda_current, cudaSuccess; }
inline cudaError_t cudaSetDevice(int n) { return fake_cuda_current = n, cudaSuccess; }
inline cudaError_t cudaMalloc(void** p, std::size_t n) {
  if (long(n) > fake_cuda("FAKE_CUDA_BYTES", 1L << 40)) return cudaErrorMemoryAllocation;
  return fake_cuda_allocated_on = fake_cuda_current, *p = std::malloc(n), cudaSuccess;
}
inline cudaError_t cudaFree(void* p) { return std::free(p), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t n, cudaMemcpyKind, cudaStream_t) {
  if (fake_cuda_copies >= fake_cuda("FAKE_CUDA_COPIES", 1 << 20)) return cudaErrorMemoryAllocation;
  return fake_cuda_copies++, std::memcpy(to, from, n), cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
  return fake_cuda_handles++, *s = reinterpret_cast<cudaStream_t>(1), cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return fake_cuda_handles--, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return fake_cuda_copies = 0, cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  return fake_cuda_handles++, *e = reinterpret_cast<cudaEvent_t>(1), cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return fake_cuda_handles--, cudaSuccess; }
