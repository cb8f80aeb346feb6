#include "runner.hpp"

#include <algorithm>
#include <cctype>

namespace rescale::detail {

bool tells_of_memory(const char* message) {
  std::string low(message);
  std::transform(low.begin(), low.end(), low.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const char* sign : {"bad_alloc", "allocate memory", "out of memory"}) {
    if (low.find(sign) != std::string::npos) return true;
  }
  return false;
}

void Runner::run_watched(GraphId graph, const Tensor* inputs, std::size_t input_count, Tensor* outputs, std::size_t output_count,
                         const std::function<void()>&) {
  run(graph, inputs, input_count, outputs, output_count);
}

void Runner::run_device(GraphId, const std::vector<DeviceTensor>&, const std::vector<DeviceTensor>&, void*) {
  fail(Code::backend, name(), " takes no device memory; the TensorRT backends do");
}

}  // namespace rescale::detail
