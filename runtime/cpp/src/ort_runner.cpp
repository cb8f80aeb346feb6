// ONNX Runtime: the default backend, on the CPU or with any of its execution providers.

#include <algorithm>

#include "machine.hpp"
#include "onnx_file.hpp"
#include "ort_library.hpp"
#include "runner.hpp"
#include "watched.hpp"

namespace rescale::detail {
namespace {

constexpr std::string_view kCpu = "CPUExecutionProvider", kSuffix = "ExecutionProvider";
constexpr std::size_t kMostTensors = 2;  // inputs or outputs of a graph

struct Pointers {
  std::vector<const char*> keys, values;
  explicit Pointers(const Settings& settings) {
    for (const auto& [key, value] : settings) {
      keys.push_back(key.c_str());
      values.push_back(value.c_str());
    }
  }
};

// Frees one of ONNX Runtime's objects at the end of a block.
template <class T>
struct Owned {
  void(ORT_API_CALL* release)(T*);
  T* object = nullptr;
  explicit Owned(void(ORT_API_CALL* r)(T*)) : release(r) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (object) release(object);
  }
};

class OrtRunner : public Runner {
 public:
  OrtRunner(const Bundle& bundle, const std::string& precision, const Options& options)
      : bundle_(bundle),
        precision_(precision),
        provider_(options.provider.empty() ? std::string(kCpu) : options.provider),
        settings_(options.provider_options),
        provider_library_(options.provider_library),
        threads_(options.threads ? options.threads : usable_threads()),
        lib_(load_onnxruntime(options.library)) {
    const OrtApi& api = *lib_.api;
    bundle_.graph(GraphId::downscale, precision_);
    require_provider();
    lib_.check(api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_.object), "ONNX Runtime");
  }

  ~OrtRunner() override {
    for (OrtSession* session : sessions_) {
      if (session) lib_.api->ReleaseSession(session);
    }
  }

  std::string name() const override {
    const std::string device = provider_.substr(0, provider_.rfind(kSuffix));
    return cat("onnxruntime ", lib_.name, " ", device, ", ", precision_, ", ", threads_, " thread(s)");
  }

  void run(GraphId graph, const Tensor* inputs, std::size_t input_count, Tensor* outputs, std::size_t output_count) override {
    run_with(nullptr, graph, inputs, input_count, outputs, output_count);
  }

  void run_watched(GraphId graph, const Tensor* inputs, std::size_t input_count, Tensor* outputs, std::size_t output_count,
                   const std::function<void()>& alive) override {
    Owned<OrtRunOptions> options(lib_.api->ReleaseRunOptions);
    lib_.check(lib_.api->CreateRunOptions(&options.object), "ONNX Runtime");
    const auto work = [&] { run_with(options.object, graph, inputs, input_count, outputs, output_count); };
    const auto stop = [&] {  // looked at between the graph's nodes
      if (OrtStatus* status = lib_.api->RunOptionsSetTerminate(options.object)) lib_.api->ReleaseStatus(status);
    };
    watched(work, stop, alive);
  }

 private:
  void run_with(const OrtRunOptions* options, GraphId graph, const Tensor* inputs, std::size_t input_count, Tensor* outputs,
                std::size_t output_count) {
    OrtSession* session = session_of(graph);
    const char *in_names[kMostTensors], *out_names[kMostTensors];
    struct Values {
      const OrtApi& api;
      OrtValue* held[kMostTensors] = {};
      ~Values() {
        for (OrtValue* v : held) {
          if (v) api.ReleaseValue(v);
        }
      }
    } in{*lib_.api}, out{*lib_.api};
    OrtStatus* status = nullptr;
    for (std::size_t i = 0; i < input_count && !status; i++) status = wrap(inputs[i], in_names[i], in.held[i]);
    for (std::size_t i = 0; i < output_count && !status; i++) status = wrap(outputs[i], out_names[i], out.held[i]);
    if (!status) {
      status = lib_.api->Run(session, options, in_names, in.held, input_count, out_names, output_count, out.held);
    }
    if (status) lib_.check(status, cat(bundle_.path, ": ", name_of(graph), " failed in ", name()));
  }

  OrtStatus* wrap(const Tensor& t, const char*& name, OrtValue*& value) {
    name = t.name;
    const auto type = t.single ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    return lib_.api->CreateTensorWithDataAsOrtValue(memory_.object, t.data, t.bytes(), t.shape, 4, type, &value);
  }

  // One session per graph, made on first use from verified bytes and shared by all threads.
  OrtSession* session_of(GraphId graph) {
    const std::lock_guard<std::mutex> guard(lock_);
    OrtSession*& session = sessions_[static_cast<std::size_t>(graph)];
    if (session) return session;
    const OrtApi& api = *lib_.api;
    const std::string what = cat(bundle_.path, ": ", name_of(graph), " cannot be loaded by ", name());
    const Bytes data = bundle_.read_graph(graph, precision_);
    check_self_contained(data, cat(bundle_.path, "/", bundle_.graph(graph, precision_).file), what);
    Owned<OrtSessionOptions> options(api.ReleaseSessionOptions);
    lib_.check(api.CreateSessionOptions(&options.object), what);
    lib_.check(api.SetIntraOpNumThreads(options.object, threads_), what);
    lib_.check(api.SetSessionLogSeverityLevel(options.object, kSilent), what);
    // Not ONNX Runtime's own format, which was not looked through.
    lib_.check(api.AddSessionConfigEntry(options.object, "session.load_model_format", "ONNX"), what);
    // A memory pattern is kept for every shape that ever came.
    lib_.check(api.DisableMemPattern(options.object), what);
    // Waiting threads must not burn the CPU of the program that embeds this.
    lib_.check(api.AddSessionConfigEntry(options.object, "session.intra_op.allow_spinning", "0"), what);
    if (provider_ != kCpu) add_provider(options.object, what);
    lib_.check(api.CreateSessionFromArray(lib_.env, data.data(), data.size(), options.object, &session), what);
    return session;
  }

  void add_provider(OrtSessionOptions* options, const std::string& what) {
    const OrtApi& api = *lib_.api;
    const Pointers p(settings_);
    if (is_device_provider_) return add_devices(options, what);
    if (provider_ == "CUDAExecutionProvider") {
      Owned<OrtCUDAProviderOptionsV2> cuda(api.ReleaseCUDAProviderOptions);
      lib_.check(api.CreateCUDAProviderOptions(&cuda.object), what);
      lib_.check(api.UpdateCUDAProviderOptions(cuda.object, p.keys.data(), p.values.data(), p.keys.size()), what);
      lib_.check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda.object), what);
    } else if (provider_ == "TensorrtExecutionProvider") {
      Owned<OrtTensorRTProviderOptionsV2> trt(api.ReleaseTensorRTProviderOptions);
      lib_.check(api.CreateTensorRTProviderOptions(&trt.object), what);
      lib_.check(api.UpdateTensorRTProviderOptions(trt.object, p.keys.data(), p.values.data(), p.keys.size()), what);
      lib_.check(api.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, trt.object), what);
    } else {
      // Some are known by their name without "ExecutionProvider", some by the whole.
      const std::string name = provider_.substr(0, provider_.rfind(kSuffix));
      const auto add = [&](const std::string& n) {
        return api.SessionOptionsAppendExecutionProvider(options, n.c_str(), p.keys.data(), p.values.data(), p.keys.size());
      };
      if (OrtStatus* status = add(name)) {
        api.ReleaseStatus(status);
        lib_.check(add(provider_), what);
      }
    }
  }

  std::vector<std::string> available() const {
    char** names = nullptr;
    int count = 0;
    lib_.check(lib_.api->GetAvailableProviders(&names, &count), "ONNX Runtime");
    std::vector<std::string> out(names, names + count);
    if (OrtStatus* status = lib_.api->ReleaseAvailableProviders(names, count)) lib_.api->ReleaseStatus(status);
    return out;
  }

  // Refuses a provider that this ONNX Runtime cannot have, registering it where it is a library of its own.
  void require_provider() {
    std::vector<std::string> names = available();
    if (std::find(names.begin(), names.end(), provider_) != names.end()) return;
    if (!provider_library_.empty()) register_library();
    for (std::string& name : device_providers()) {
      is_device_provider_ = is_device_provider_ || name == provider_;
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
    }
    if (is_device_provider_) return;
    std::string have;
    for (const std::string& n : names) have += cat(have.empty() ? "" : ", ", n);
    fail(Code::backend, provider_, ": this ONNX Runtime ", lib_.name, " does not have it, only ", have);
  }

#if ORT_API_VERSION >= 22
  void register_library() {
    if (lib_.version < 22)
      fail(Code::backend, provider_library_, ": ONNX Runtime ", lib_.name, " takes no such libraries; 1.22 does");
    const std::lock_guard<std::mutex> guard(lib_.lock);
    for (const std::string& name : device_providers()) {
      if (name == provider_) return;  // registered before
    }
    OrtStatus* status = lib_.api->RegisterExecutionProviderLibrary(lib_.env, provider_.c_str(), provider_library_.c_str());
    lib_.check(status, cat(provider_, ": its library ", provider_library_, " cannot be loaded"));
  }

  void devices(std::vector<const OrtEpDevice*>& out) const {
    const OrtEpDevice* const* all = nullptr;
    std::size_t count = 0;
    if (lib_.version < 22) return;
    lib_.check(lib_.api->GetEpDevices(lib_.env, &all, &count), "ONNX Runtime");
    out.assign(all, all + count);
  }

  std::vector<std::string> device_providers() const {
    std::vector<const OrtEpDevice*> all;
    devices(all);
    std::vector<std::string> out;
    for (const OrtEpDevice* d : all) out.emplace_back(lib_.api->EpDevice_EpName(d));
    return out;
  }

  void add_devices(OrtSessionOptions* options, const std::string& what) {
    std::vector<const OrtEpDevice*> all, own;
    devices(all);
    for (const OrtEpDevice* d : all) {
      if (lib_.api->EpDevice_EpName(d) == provider_) own.push_back(d);
    }
    const Pointers p(settings_);
    lib_.check(lib_.api->SessionOptionsAppendExecutionProvider_V2(options, lib_.env, own.data(), own.size(), p.keys.data(),
                                                                  p.values.data(), p.keys.size()),
               what);
  }
#else
  void register_library() {
    fail(Code::backend, provider_library_, ": built with the header of ONNX Runtime 1.", ORT_API_VERSION,
         "; libraries of providers need that of 1.22 or newer");
  }
  std::vector<std::string> device_providers() const { return {}; }
  void add_devices(OrtSessionOptions*, const std::string&) {}
#endif

  const Bundle& bundle_;
  const std::string precision_, provider_;
  const Settings settings_;
  const std::string provider_library_;
  const int threads_;
  OrtLibrary& lib_;
  Owned<OrtMemoryInfo> memory_{lib_.api->ReleaseMemoryInfo};
  bool is_device_provider_ = false;  // it comes as devices of a registered library
  std::mutex lock_;
  OrtSession* sessions_[4] = {};
};

}  // namespace

std::unique_ptr<Runner> make_onnxruntime(const Bundle& bundle, const std::string& precision, const Options& options) {
  return std::make_unique<OrtRunner>(bundle, precision, options);
}

}  // namespace rescale::detail
