// Stands between the library and ONNX Runtime: tells when a call is inside of it, and can give itself out for another version.
//   SHIM_LIBRARY   the true library
//   SHIM_VERSION   the version to tell, such as 1.17.1
//   SHIM_HANGS     if set, a run says so on standard error and does not end, whatever it is told

#include <dlfcn.h>
#include <onnxruntime_c_api.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace {

const OrtApiBase* truth;
const OrtApi* true_api;
OrtApi wrapped;
void (*entered)(int);

struct Inside {
  Inside() { entered ? entered(1) : void(); }
  ~Inside() { entered ? entered(-1) : void(); }
};

OrtStatusPtr ORT_API_CALL run(OrtSession* s, const OrtRunOptions* o, const char* const* in, const OrtValue* const* values, size_t n,
                              const char* const* out, size_t m, OrtValue** results) NO_EXCEPTION {
  if (std::getenv("SHIM_HANGS")) {
    std::fputs("hangs\n", stderr);
    for (;;) pause();
  }
  Inside inside;
  return true_api->Run(s, o, in, values, n, out, m, results);
}

OrtStatusPtr ORT_API_CALL wrap(const OrtMemoryInfo* info, void* data, size_t size, const int64_t* shape, size_t rank,
                               ONNXTensorElementDataType type, OrtValue** out) NO_EXCEPTION {
  Inside inside;
  return true_api->CreateTensorWithDataAsOrtValue(info, data, size, shape, rank, type, out);
}

void ORT_API_CALL release(OrtValue* value) NO_EXCEPTION {
  Inside inside;
  true_api->ReleaseValue(value);
}

const OrtApi* ORT_API_CALL get_api(uint32_t version) NO_EXCEPTION {
  true_api = truth->GetApi(version);
  if (!true_api) return nullptr;
  wrapped = *true_api;
  wrapped.Run = run;
  wrapped.CreateTensorWithDataAsOrtValue = wrap;
  wrapped.ReleaseValue = release;
  return &wrapped;
}

const char* ORT_API_CALL get_version() NO_EXCEPTION {
  const char* told = std::getenv("SHIM_VERSION");
  return told ? told : truth->GetVersionString();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* OrtGetApiBase() {
  static const OrtApiBase base{get_api, get_version};
  void* library = dlopen(std::getenv("SHIM_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
  truth = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
  entered = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "backend_entered"));
  return &base;
}
