// A TensorRT that knows two networks: "fake downscale|upscale SCALE CHANNELS MIN MAX", MIN and MAX the sides of its input.
// downscale takes each cell's first pixel, with 200 as a fourth channel; upscale repeats pixels.

#include <NvInferRuntime.h>

#include <cstdio>
#include <map>
#include <string>

using namespace nvinfer1;

namespace {

ILogger* logger;
int last_high = 0;  // of the engine that ran last

struct Net {
  bool down;
  int scale, channels, low, high;
  std::string input() const { return down ? "hr" : "lr"; }
};

struct Context : IExecutionContext {
  explicit Context(Net n) : net(n) {}
  bool setInputShape(char const*, Dims const& d) noexcept override { return shape = d, true; }
  Dims getTensorShape(char const* name) const noexcept override {
    if (net.input() == name) return shape;
    const std::int64_t h = net.down ? shape.d[1] / net.scale : shape.d[1] * net.scale,
                       w = net.down ? shape.d[2] / net.scale : shape.d[2] * net.scale;
    return {4, {shape.d[0], h, w, net.down ? net.channels : 3}};
  }
  bool setTensorAddress(char const* name, void* p) noexcept override { return at[name] = static_cast<std::uint8_t*>(p), true; }
  bool enqueueV3(cudaStream_t) noexcept override {
    last_high = net.high;
    const Dims out = getTensorShape(net.down ? "lr" : "hr");
    const std::uint8_t* from = at[net.input()];
    std::uint8_t* to = at[net.down ? "lr" : "hr"];
    for (std::int64_t y = 0; y < out.d[1]; y++) {
      for (std::int64_t x = 0; x < out.d[2]; x++) {
        const std::int64_t sy = net.down ? y * net.scale : y / net.scale, sx = net.down ? x * net.scale : x / net.scale;
        for (std::int64_t c = 0; c < out.d[3]; c++) *to++ = c == 3 ? 200 : from[(sy * shape.d[2] + sx) * shape.d[3] + c];
      }
    }
    return true;
  }
  Net net;
  Dims shape{};
  std::map<std::string, std::uint8_t*> at;
};

struct Engine : ICudaEngine {
  explicit Engine(Net n) : net(n) {}
  std::int32_t getNbIOTensors() const noexcept override { return 2; }
  char const* getIOTensorName(std::int32_t i) const noexcept override { return (i == 0) == net.down ? "hr" : "lr"; }
  DataType getTensorDataType(char const*) const noexcept override { return DataType::kUINT8; }
  TensorIOMode getTensorIOMode(char const* n) const noexcept override {
    return net.input() == n ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  Dims getProfileShape(char const*, std::int32_t, OptProfileSelector s) const noexcept override {
    const int side = s == OptProfileSelector::kMIN ? net.low : net.high;
    return {4, {1, side, side, net.down ? 3 : net.channels}};
  }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override { return new Context(net); }
  Net net;
};

struct Runtime : IRuntime {
  ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
    char graph[16];
    Net net{};
    const std::string text(static_cast<const char*>(blob), size);
    if (std::sscanf(text.c_str(), "fake %15s %d %d %d %d", graph, &net.scale, &net.channels, &net.low, &net.high) != 5) {
      logger->log(ILogger::Severity::kERROR, "header.magicTag == kEXPECTED_MAGIC_TAG failed");
      return nullptr;
    }
    net.down = graph == std::string("downscale");
    return new Engine(net);
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) int fake_trt_last_high() { return last_high; }

extern "C" __attribute__((visibility("default"))) void* createInferRuntime_INTERNAL(void* given, std::int32_t) {
  logger = static_cast<ILogger*>(given);
  return static_cast<IRuntime*>(new Runtime);
}
