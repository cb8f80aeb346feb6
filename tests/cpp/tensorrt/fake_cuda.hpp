// What the fake TensorRT asks of the fake CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <vector>

struct Span {
  const void* from;
  std::size_t size;
};

// A kernel into a stream.
void fake_cuda_put(const std::string& name, cudaStream_t stream, std::vector<Span> reads, std::vector<Span> writes,
                   std::function<void()> run);

// Notes that something would be wrong on a device if work on these bytes is under way.
void fake_cuda_require_idle(Span bytes, const std::string& what);
