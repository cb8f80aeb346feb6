// Backends: each runs a bundle's graphs on memory of the caller.

#pragma once

#include <functional>

#include "bundle.hpp"

namespace rescale::detail {

// C-contiguous.
struct Tensor {
  const char* name;
  bool single;  // float32; else uint8
  void* data;
  std::int64_t shape[4];
  std::size_t bytes() const {
    std::size_t n = single ? 4 : 1;
    for (const std::int64_t side : shape) n *= static_cast<std::size_t>(side);
    return n;
  }
};

// Thread-safe.
class Runner {
 public:
  virtual ~Runner() = default;
  virtual std::string name() const = 0;  // backend, version, device, for reports
  // Fills the outputs, whose shapes the caller knows. Throws Code::backend or Code::out_of_memory.
  virtual void run(GraphId graph, const Tensor* inputs, std::size_t input_count, Tensor* outputs, std::size_t output_count) = 0;
  // The same, with `alive` called about ten times a second, in this thread, where a backend can be stopped: what it throws stops
  // the run and is passed on. Elsewhere as `run`.
  virtual void run_watched(GraphId graph, const Tensor* inputs, std::size_t input_count, Tensor* outputs,
                           std::size_t output_count, const std::function<void()>& alive);
  virtual void run_device(GraphId graph, const std::vector<DeviceTensor>& inputs, const std::vector<DeviceTensor>& outputs,
                          void* stream);
};

std::unique_ptr<Runner> make_onnxruntime(const Bundle& bundle, const std::string& precision, const Options& options);
std::unique_ptr<Runner> make_tensorrt(const Bundle& bundle, const std::string& precision, const Options& options);

// How libraries word a failed allocation.
bool tells_of_memory(const char* message);

}  // namespace rescale::detail
