// TensorRT and TensorRT for RTX: engines that `rescale-engine build` made, on a GPU. One of the two per build, whichever NVIDIA
// headers it is compiled with; the library itself is loaded when it is asked for.

#include <NvInferRuntime.h>
#include <NvInferVersion.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <list>
#include <map>
#include <mutex>
#include <type_traits>

#include "engine_file.hpp"
#include "files.hpp"
#include "runner.hpp"

namespace rescale::detail {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr const char* kBackend = "tensorrt-rtx";
const std::string kLibrary = cat("libtensorrt_rtx.so.", TRT_MAJOR_RTX);
#else
constexpr const char* kBackend = "tensorrt";
const std::string kLibrary = cat("libnvinfer.so.", NV_TENSORRT_MAJOR);
#endif

constexpr std::uintptr_t kAlignment = 256;  // of what TensorRT reads and writes

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  const Code code = error == cudaErrorMemoryAllocation ? Code::out_of_memory : Code::backend;
  fail(code, kBackend, ": ", call, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

// Keeps the last error of each thread. One for the process: the first that the library is given wins.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      last() = message;
    } catch (...) {
      last().clear();
    }
  }
  static std::string& last() {
    thread_local std::string text;
    return text;
  }
};

// What a call answered; throws with the library's words where that is nothing.
template <class T>
T need(T answer, const std::string& what) {
  if (answer) return answer;
  const std::string why = std::exchange(Logger::last(), {});
  fail(tells_of_memory(why.c_str()) ? Code::out_of_memory : Code::backend, what, " failed: ", why.empty() ? "no message" : why);
}

nvinfer1::IRuntime* open_runtime(const std::string& named) {
  const std::string path = named.empty() ? kLibrary : named;
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(Code::backend, kBackend, ": ", std::string(::dlerror()), ": name the library in the options");
  const auto create = reinterpret_cast<void* (*)(void*, std::int32_t)>(::dlsym(library, "createInferRuntime_INTERNAL"));
  if (!create) fail(Code::backend, path, ": not ", kBackend, ": it has no createInferRuntime_INTERNAL");
  static auto& logger = *new Logger;
  return static_cast<nvinfer1::IRuntime*>(need(create(&logger, NV_TENSORRT_VERSION), path + ": createInferRuntime"));
}

// Makes a device the current one of this thread while it lives, and then the one that was.
class OnDevice {
 public:
  explicit OnDevice(int device) : device_(device), before_(device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device_) error_ = cudaSetDevice(device_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  void require() const { check(error_, "cudaSetDevice"); }

 private:
  int device_, before_;
  cudaError_t error_;
};

// Waits for a stream where a block is left by an exception: its copies may still read and write the caller's memory.
class WaitsOnFailure {
 public:
  explicit WaitsOnFailure(cudaStream_t stream) : stream_(stream) {}
  WaitsOnFailure(const WaitsOnFailure&) = delete;
  WaitsOnFailure& operator=(const WaitsOnFailure&) = delete;
  ~WaitsOnFailure() {
    if (!done_) cudaStreamSynchronize(stream_);
  }
  void done() { done_ = true; }

 private:
  cudaStream_t stream_;
  bool done_ = false;
};

struct Destroyer {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
template <class Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroyer>;

// Device memory that grows and never shrinks. It is freed when nothing runs any more.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }
  void* fit(std::size_t size) {
    if (size > size_) {
      cudaFree(std::exchange(data_, nullptr));
      size_ = 0;
      check(cudaMalloc(&data_, size), "cudaMalloc");
      size_ = size;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// Batch, and HR height and width that the inputs of a graph stand for.
struct HrSides {
  std::int64_t sides[3];

  HrSides(GraphId graph, int scale, const DeviceTensor& first) {
    const bool planes = graph == GraphId::encoder || graph == GraphId::decoder || text(first.name) == "z";  // NCHW
    const std::int64_t factor = graph == GraphId::downscale ? 1 : graph == GraphId::decoder ? scale * kLatentStride : scale;
    sides[0] = first.shape[0];
    for (int i = 1; i < 3; i++) sides[i] = first.shape[planes ? i + 1 : i] * factor;
  }

  // Whether an engine may take them. Sizes of the -M graphs are rounded up to the latent's grid; the engine itself knows exactly.
  bool within(const EngineInfo& info, GraphId graph, int scale) const {
    const bool latent = graph == GraphId::encoder || graph == GraphId::decoder;
    const std::int64_t grid = latent ? std::int64_t{kLatentStride} * scale : 1;
    if (sides[0] < info.low[0] || sides[0] > info.high[0]) return false;
    for (int i = 1; i < 3; i++) {
      if (sides[i] < info.low[i] - info.low[i] % grid || sides[i] > ceil_div(info.high[i], grid) * grid) return false;
    }
    return true;
  }
};

struct Engine {
  EngineInfo info;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::unique_ptr<nvinfer1::IExecutionContext> context;

  // Whether the inputs' shapes lie in the engine's profile.
  bool covers(const std::vector<DeviceTensor>& inputs) const {
    for (const DeviceTensor& t : inputs) {
      const nvinfer1::Dims low = engine->getProfileShape(t.name, 0, nvinfer1::OptProfileSelector::kMIN);
      const nvinfer1::Dims high = engine->getProfileShape(t.name, 0, nvinfer1::OptProfileSelector::kMAX);
      for (int i = 0; i < 4; i++) {
        if (low.nbDims != 4 || t.shape[i] < low.d[i] || t.shape[i] > high.d[i]) return false;
      }
    }
    return true;
  }
};

class TensorRtRunner : public Runner {
 public:
  TensorRtRunner(const Bundle& bundle, const std::string& precision, const Options& options)
      : bundle_(bundle),
        precision_(precision),
        named_(options.engines),
        folder_(absolute(engines_folder(bundle, options.engines))),
        device_(options.device) {
    bundle_.graph(GraphId::downscale, precision_);
    // Asked first: without a driver the library's objects are not what they seem.
    int count = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess || device_ < 0 || device_ >= count) {
      fail(Code::backend, kBackend, ": no CUDA device ", device_, " (",
           found == cudaSuccess ? cat(count, " are there") : text(cudaGetErrorString(found)), ")");
    }
    cudaDeviceProp about{};
    check(cudaGetDeviceProperties(&about, device_), "cudaGetDeviceProperties");
    gpu_ = about.name;
    const OnDevice there(device_);
    there.require();
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    stream_.reset(stream);
    cudaEvent_t done = nullptr;
    check(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "cudaEventCreate");
    done_.reset(done);
    runtime_.reset(open_runtime(options.library));
  }

  ~TensorRtRunner() override {
    const OnDevice there(device_);
    cudaEventSynchronize(done_.get());  // the caller's stream may still run one of ours
    chosen_.clear();
    engines_.clear();
    runtime_.reset();
  }

  std::string name() const override { return cat(kBackend, ", ", precision_, ", ", gpu_); }

  void run(GraphId graph, const Tensor* inputs, std::size_t input_count, Tensor* outputs, std::size_t output_count) override {
    const std::lock_guard<std::mutex> guard(lock_);
    const OnDevice there(device_);
    there.require();
    WaitsOnFailure guarded(stream_.get());
    check(cudaStreamWaitEvent(stream_.get(), done_.get(), 0), "cudaStreamWaitEvent");  // its memory may be in use
    const auto placed = [](const Tensor* tensors, std::size_t count, DeviceBuffer* memory) {
      std::vector<DeviceTensor> out(count);
      for (std::size_t i = 0; i < count; i++) {
        out[i].name = tensors[i].name;
        out[i].data = memory[i].fit(tensors[i].bytes());
        std::copy_n(tensors[i].shape, 4, out[i].shape);
      }
      return out;
    };
    const auto in = placed(inputs, input_count, in_), out = placed(outputs, output_count, out_);
    for (std::size_t i = 0; i < input_count; i++) {
      check(cudaMemcpyAsync(in[i].data, inputs[i].data, inputs[i].bytes(), cudaMemcpyHostToDevice, stream_.get()),
            "cudaMemcpyAsync");
    }
    enqueue(graph, in, out, stream_.get());
    for (std::size_t i = 0; i < output_count; i++) {
      check(cudaMemcpyAsync(outputs[i].data, out[i].data, outputs[i].bytes(), cudaMemcpyDeviceToHost, stream_.get()),
            "cudaMemcpyAsync");
    }
    check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
    guarded.done();
  }

  void run_device(GraphId graph, const std::vector<DeviceTensor>& inputs, const std::vector<DeviceTensor>& outputs,
                  void* stream) override {
    const Graph& g = bundle_.graph(graph, precision_);
    check_given(graph, g.inputs, inputs);
    check_given(graph, g.outputs, outputs);
    const std::lock_guard<std::mutex> guard(lock_);
    const OnDevice there(device_);
    there.require();
    auto* order = static_cast<cudaStream_t>(stream);
    check(cudaStreamWaitEvent(order, done_.get(), 0), "cudaStreamWaitEvent");  // a context's memory serves one run at a time
    enqueue(graph, inputs, outputs, order);
  }

 private:
  void check_given(GraphId graph, const std::vector<TensorInfo>& wanted, const std::vector<DeviceTensor>& given) const {
    bool same = wanted.size() == given.size();
    std::string names;
    for (const TensorInfo& t : wanted) {
      names += cat(names.empty() ? "" : ", ", t.name);
      bool found = false;
      for (const DeviceTensor& d : given) found = found || (d.name && t.name == d.name && d.data);
      same = same && found;
    }
    if (!same) fail(Code::backend, name_of(graph), ": wanted are ", names);
    for (const DeviceTensor& d : given) {
      if (reinterpret_cast<std::uintptr_t>(d.data) % kAlignment == 0) continue;
      fail(Code::backend, name_of(graph), ": ", text(d.name), ": its address is not a multiple of ", kAlignment,
           ", as that of a slice may be; give a copy of it");
    }
  }

  void enqueue(GraphId graph, const std::vector<DeviceTensor>& inputs, const std::vector<DeviceTensor>& outputs,
               cudaStream_t stream) {
    Engine& engine = engine_for(graph, inputs);
    nvinfer1::IExecutionContext& context = *engine.context;
    const std::string what = cat(engine.info.path, ": ", name_of(graph), " of ", bundle_.path);
    for (const DeviceTensor& t : inputs) {
      nvinfer1::Dims shape{};
      shape.nbDims = 4;
      for (int i = 0; i < 4; i++) shape.d[i] = static_cast<std::decay_t<decltype(shape.d[0])>>(t.shape[i]);
      need(context.setInputShape(t.name, shape) && context.setTensorAddress(t.name, t.data), what + ": input " + t.name);
    }
    for (const DeviceTensor& t : outputs) {
      const nvinfer1::Dims shape = context.getTensorShape(t.name);
      bool same = shape.nbDims == 4;
      for (int i = 0; i < 4; i++) same = same && shape.d[i] == t.shape[i];
      if (!same) fail(Code::backend, what, ": output ", text(t.name), " has another shape than its memory");
      need(context.setTensorAddress(t.name, t.data), what + ": output " + t.name);
    }
    const bool queued = context.enqueueV3(stream);
    const cudaError_t recorded = cudaEventRecord(done_.get(), stream);  // of a run that failed half-way too
    need(queued, what + ": enqueueV3");
    check(recorded, "cudaEventRecord");
  }

  // The smallest engine that covers the inputs. The folder is looked at for shapes that are new.
  Engine& engine_for(GraphId graph, const std::vector<DeviceTensor>& inputs) {
    Shapes shapes{graph, {}};
    for (const DeviceTensor& t : inputs) shapes.second[t.name].assign(t.shape, t.shape + 4);
    const auto found = chosen_.find(shapes);
    if (found != chosen_.end()) return *found->second;
    Engine& engine = find_engine(graph, inputs);
    if (chosen_.size() >= kMostChosen) chosen_.clear();
    chosen_.emplace(std::move(shapes), &engine);
    return engine;
  }

  Engine& find_engine(GraphId graph, const std::vector<DeviceTensor>& inputs) {
    const HrSides hr(graph, bundle_.scale, inputs[0]);
    std::string passed;
    for (const EngineInfo& info : find_engines(folder_, bundle_, kBackend, precision_, graph)) {
      if (!hr.within(info, graph, bundle_.scale)) continue;
      if (!info.device.empty() && info.device != gpu_) {
        passed += cat("; ", info.path, " was built for ", info.device, ", this is ", gpu_);
        continue;
      }
      auto& loaded = engines_[graph];
      const auto known = std::find_if(loaded.begin(), loaded.end(), [&](const Engine& e) { return e.info.path == info.path; });
      Engine* e = known != loaded.end() ? &*known : load(graph, info, passed);
      if (e && e->covers(inputs)) return *e;
    }
    const std::int64_t* s = inputs[0].shape;
    fail(Code::backend, folder_, ": no ", precision_, " ", kBackend, " engine of ", name_of(graph), " covers ",
         text(inputs[0].name), " of ", s[0], "x", s[1], "x", s[2], "x", s[3], passed, "; build one with rescale-engine build ",
         bundle_.path, " --backend ", kBackend, " --precision ", precision_, " --profile ", hr.sides[0], "x", hr.sides[1], "x",
         hr.sides[2], named_.empty() ? "" : " --out ", named_, ", or run in smaller tiles");
  }

  // An engine of the library's that is here; null, with the reason in `passed`, where it refuses one: such as another version's.
  Engine* load(GraphId graph, const EngineInfo& info, std::string& passed) {
    Engine e;
    e.info = info;
    const Bytes data = read_engine(info);
    e.engine.reset(runtime_->deserializeCudaEngine(data.data(), data.size()));
    if (!e.engine) {
      const std::string why = std::exchange(Logger::last(), {});
      const std::string said =
          cat(info.path, ": built by version ", info.library, ": deserializeCudaEngine failed: ", why.empty() ? "no message" : why);
      if (tells_of_memory(why.c_str())) fail(Code::out_of_memory, said);
      passed += "; " + said;
      return nullptr;
    }
    const Graph& g = bundle_.graph(graph, precision_);
    std::size_t same = 0;
    for (int i = 0; i < e.engine->getNbIOTensors(); i++) {
      const char* tensor = e.engine->getIOTensorName(i);
      const bool input = e.engine->getTensorIOMode(tensor) == nvinfer1::TensorIOMode::kINPUT;
      const bool single = e.engine->getTensorDataType(tensor) == nvinfer1::DataType::kFLOAT;
      const bool bytes = e.engine->getTensorDataType(tensor) == nvinfer1::DataType::kUINT8;
      for (const TensorInfo& t : input ? g.inputs : g.outputs) same += t.name == tensor && (t.dtype == "float32" ? single : bytes);
    }
    if (same != g.inputs.size() + g.outputs.size() || same != static_cast<std::size_t>(e.engine->getNbIOTensors())) {
      fail(Code::backend, info.path, ": its inputs and outputs are not those of the bundle's ", g.file);
    }
    e.context.reset(need(e.engine->createExecutionContext(), cat(info.path, ": createExecutionContext")));
    engines_[graph].push_back(std::move(e));
    return &engines_[graph].back();
  }

  const Bundle& bundle_;
  const std::string precision_, named_, folder_;
  const int device_;
  std::string gpu_;
  std::mutex lock_;
  Owned<cudaStream_t> stream_;
  Owned<cudaEvent_t> done_;  // the last run
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::map<GraphId, std::list<Engine>> engines_;  // those that are loaded; none moves
  using Shapes = std::pair<GraphId, std::map<std::string, std::vector<std::int64_t>>>;
  static constexpr std::size_t kMostChosen = 1000;
  std::map<Shapes, Engine*> chosen_;  // by the inputs' shapes
  DeviceBuffer in_[2], out_[2];
};

}  // namespace

std::unique_ptr<Runner> make_tensorrt(const Bundle& bundle, const std::string& precision, const Options& options) {
  if (options.backend != kBackend) {
    fail(Code::backend, "backend ", options.backend, ": this library was built with the headers of ", kBackend);
  }
  return std::make_unique<TensorRtRunner>(bundle, precision, options);
}

}  // namespace rescale::detail
