// A TensorRT that knows the bundles' networks: "fake GRAPH SCALE CHANNELS PLANES MIN MAX", with the LR's channels, z's planes (0:
// none) and the sides of the inputs. Its numbers are exact:
//   downscale  lr: each cell's first pixel, with 200 as a fourth channel; z: that pixel's red, green, blue, red, ... and a quarter
//   encoder    code: whole numbers of z's first planes, at every fourth position
//   decoder    z: the code of the same place, plane by plane in turn, and a half
//   upscale    hr: repeated pixels; with z, each has the bits changed that twice its plane of z has
// It runs when the fake CUDA does, and refuses addresses that are not multiples of 256. FAKE_TRT_FAILS: a run fails half-way.

#include <NvInferRuntime.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "fake_cuda.hpp"

using namespace nvinfer1;

namespace {

ILogger* logger;
int last_high = 0;  // of the engine that ran last

struct Net {
  std::string graph;
  int scale, channels, planes, low, high;
  std::vector<std::string> inputs, outputs;

  static bool single(const std::string& name) { return name == "z"; }
  // Sides of a tensor as a fraction of the LR's.
  std::pair<std::int64_t, std::int64_t> factor(const std::string& name) const {
    return name == "hr" ? std::pair(scale, 1) : name == "code" ? std::pair(1, 4) : std::pair(1, 1);
  }
  Dims shape(const std::string& name, std::int64_t n, std::int64_t h, std::int64_t w) const {
    if (name == "z" || name == "code") return {4, {n, name == "z" ? planes : 4, h, w}};
    return {4, {n, h, w, name == "lr" ? channels : 3}};
  }
  static std::size_t bytes(const std::string& name, const Dims& d) {
    return static_cast<std::size_t>(d.d[0] * d.d[1] * d.d[2] * d.d[3]) * (single(name) ? 4 : 1);
  }
};

// One tensor of a run; pictures are HWC, planes CHW.
struct Data {
  std::uint8_t* bytes;
  Dims shape;
  std::uint8_t& pixel(std::int64_t y, std::int64_t x, std::int64_t c) const {
    return bytes[(y * shape.d[2] + x) * shape.d[3] + c];
  }
  std::int64_t plane(std::int64_t c, std::int64_t y, std::int64_t x) const { return (c * shape.d[2] + y) * shape.d[3] + x; }
  std::uint8_t& code(std::int64_t c, std::int64_t y, std::int64_t x) const { return bytes[plane(c, y, x)]; }
  float& z(std::int64_t c, std::int64_t y, std::int64_t x) const { return reinterpret_cast<float*>(bytes)[plane(c, y, x)]; }
};

template <class Set>
void each(const Dims& d, Set set) {
  for (std::int64_t a = 0; a < d.d[1]; a++) {
    for (std::int64_t b = 0; b < d.d[2]; b++) {
      for (std::int64_t c = 0; c < d.d[3]; c++) set(a, b, c);
    }
  }
}

void compute(const Net& net, std::map<std::string, Data>& t) {
  const Data hr = t["hr"], lr = t["lr"], z = t["z"], code = t["code"];
  const int s = net.scale;
  if (net.graph == "downscale") {
    each(lr.shape, [&](auto y, auto x, auto c) { lr.pixel(y, x, c) = c == 3 ? 200 : hr.pixel(y * s, x * s, c); });
    if (z.bytes) each(z.shape, [&](auto c, auto y, auto x) { z.z(c, y, x) = hr.pixel(y * s, x * s, c % 3) + 0.25F; });
  } else if (net.graph == "encoder") {
    each(code.shape, [&](auto c, auto y, auto x) { code.code(c, y, x) = static_cast<std::uint8_t>(z.z(c, 4 * y, 4 * x)); });
  } else if (net.graph == "decoder") {
    each(z.shape, [&](auto c, auto y, auto x) { z.z(c, y, x) = code.code(c % 4, y / 4, x / 4) + 0.5F; });
  } else {
    each(hr.shape, [&](auto y, auto x, auto c) {
      const int change = z.bytes ? static_cast<int>(2 * z.z(c, y / s, x / s)) : 0;
      hr.pixel(y, x, c) = static_cast<std::uint8_t>(lr.pixel(y / s, x / s, c) ^ change);
    });
  }
}

struct Context : IExecutionContext {
  explicit Context(Net n) : net(std::move(n)) {}
  ~Context() override { fake_cuda_require_idle({&scratch, 1}, "an execution context ended"); }
  bool setInputShape(char const* name, Dims const& d) noexcept override { return shapes[name] = d, true; }
  Dims getTensorShape(char const* name) const noexcept override {
    if (const auto known = shapes.find(name); known != shapes.end()) return known->second;
    const std::string& input = net.inputs[0];
    const Dims& d = shapes.at(input);
    const bool planes = input == "z" || input == "code";
    const auto [in, per_in] = net.factor(input);
    const auto [out, per_out] = net.factor(name);
    const auto side = [&, in = in, per_in = per_in, out = out, per_out = per_out](int i) {
      return d.d[planes ? i + 1 : i] * per_in / in * out / per_out;
    };
    return net.shape(name, d.d[0], side(1), side(2));
  }
  bool setTensorAddress(char const* name, void* p) noexcept override {
    at[name] = static_cast<std::uint8_t*>(p);
    return reinterpret_cast<std::uintptr_t>(p) % 256 == 0;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    last_high = net.high;
    std::vector<Span> reads, writes{{&scratch, 1}};
    std::map<std::string, Data> tensors;
    for (const auto* names : {&net.inputs, &net.outputs}) {
      for (const std::string& name : *names) {
        const Dims shape = getTensorShape(name.c_str());
        tensors[name] = {at[name], shape};
        (names == &net.inputs ? reads : writes).push_back({at[name], Net::bytes(name, shape)});
      }
    }
    fake_cuda_put("a run of " + net.graph, stream, reads, writes, [n = net, tensors]() mutable { compute(n, tensors); });
    if (!std::getenv("FAKE_TRT_FAILS")) return true;
    return logger->log(ILogger::Severity::kERROR, "a kernel was not launched"), false;
  }
  Net net;
  char scratch{};  // stands for the memory of its own that a context works in
  std::map<std::string, Dims> shapes;
  std::map<std::string, std::uint8_t*> at;
};

struct Engine : ICudaEngine {
  explicit Engine(Net n) : net(std::move(n)) {}
  std::int32_t getNbIOTensors() const noexcept override {
    return static_cast<std::int32_t>(net.inputs.size() + net.outputs.size());
  }
  char const* getIOTensorName(std::int32_t i) const noexcept override {
    const auto n = static_cast<std::size_t>(i);
    return (n < net.inputs.size() ? net.inputs[n] : net.outputs[n - net.inputs.size()]).c_str();
  }
  DataType getTensorDataType(char const* name) const noexcept override {
    return Net::single(name) ? DataType::kFLOAT : DataType::kUINT8;
  }
  TensorIOMode getTensorIOMode(char const* name) const noexcept override {
    for (const std::string& input : net.inputs) {
      if (input == name) return TensorIOMode::kINPUT;
    }
    return TensorIOMode::kOUTPUT;
  }
  Dims getProfileShape(char const* name, std::int32_t, OptProfileSelector s) const noexcept override {
    const int side = s == OptProfileSelector::kMIN ? net.low : net.high;
    return net.shape(name, 1, side, side);
  }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override { return new Context(net); }
  Net net;
};

struct Runtime : IRuntime {
  ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
    char graph[16];
    Net net{};
    const std::string text(static_cast<const char*>(blob), size);
    const char* format = "fake %15s %d %d %d %d %d";
    if (std::sscanf(text.c_str(), format, graph, &net.scale, &net.channels, &net.planes, &net.low, &net.high) != 6) {
      logger->log(ILogger::Severity::kERROR, "header.magicTag == kEXPECTED_MAGIC_TAG failed");
      return nullptr;
    }
    net.graph = graph;
    const bool large = net.graph == "downscale", small = net.graph == "upscale";
    net.inputs = {large ? "hr" : small ? "lr" : net.graph == "encoder" ? "z" : "code"};
    net.outputs = {large ? "lr" : small ? "hr" : net.graph == "encoder" ? "code" : "z"};
    if (net.planes && large) net.outputs.emplace_back("z");
    if (net.planes && small) net.inputs.emplace_back("z");
    return new Engine(net);
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) int fake_trt_last_high() { return last_high; }

extern "C" __attribute__((visibility("default"))) void* createInferRuntime_INTERNAL(void* given, std::int32_t) {
  logger = static_cast<ILogger*>(given);
  return static_cast<IRuntime*>(new Runtime);
}
