#include "ort_library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "runner.hpp"

namespace rescale::detail {
namespace {

constexpr std::uint32_t kLeastVersion = 12;  // the first that reads opset 17
constexpr const char* kUsualNames[] = {"libonnxruntime.so", "libonnxruntime.so.1", "libonnxruntime.so.1.21",
                                       "libonnxruntime.so.1.23", "libonnxruntime.dylib"};

void* open_library(const std::string& wanted, std::string& found) {
  std::vector<std::string> names;
  const char* variable = std::getenv("RESCALE_ONNXRUNTIME");
  if (!wanted.empty()) {
    names.push_back(wanted);
  } else if (variable && *variable) {
    names.emplace_back(variable);
  } else {
    names.assign(std::begin(kUsualNames), std::end(kUsualNames));
  }
  std::string why;
  for (const std::string& name : names) {
    if (void* handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) {
      found = name;
      return handle;
    }
    why += cat(why.empty() ? "" : "; ", std::string(::dlerror()));
  }
  fail(Code::backend, "ONNX Runtime cannot be loaded (", why,
       "): name its libonnxruntime.so in the options or in RESCALE_ONNXRUNTIME");
}

OrtLibrary* open(const std::string& wanted) {
  auto lib = std::make_unique<OrtLibrary>();
  void* handle = open_library(wanted, lib->path);
  const auto base_of = reinterpret_cast<const OrtApiBase* (*)()>(::dlsym(handle, "OrtGetApiBase"));
  if (!base_of) fail(Code::backend, lib->path, ": not ONNX Runtime: it has no OrtGetApiBase");
  const OrtApiBase* base = base_of();
  lib->name = base->GetVersionString();
  // 1.21.0 has API 21. Asked for one it does not have, the library would print an error.
  const std::size_t dot = lib->name.find('.');
  const unsigned long minor = dot == std::string::npos ? 0 : std::strtoul(lib->name.c_str() + dot + 1, nullptr, 10);
  lib->version = static_cast<std::uint32_t>(std::min<unsigned long>(minor, ORT_API_VERSION));
  lib->api = lib->version >= kLeastVersion ? base->GetApi(lib->version) : nullptr;
  if (!lib->api) {
    fail(Code::backend, lib->path, ": ONNX Runtime ", lib->name, "; version 1.", kLeastVersion, " or newer is wanted");
  }
  lib->check(lib->api->CreateEnv(kSilent, "rescale", &lib->env), cat(lib->path, ": no environment"));
  return lib.release();
}

// Words with one space between them.
std::string on_one_line(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    if (!space) out += c;
    if (space && !out.empty() && out.back() != ' ') out += ' ';
  }
  return out.substr(0, out.find_last_not_of(' ') + 1);
}

}  // namespace

void OrtLibrary::check(OrtStatus* status, const std::string& what) const {
  if (!status) return;
  const std::string why = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  fail(tells_of_memory(why.c_str()) ? Code::out_of_memory : Code::backend, what, ": ", printable(on_one_line(why)));
}

OrtLibrary& load_onnxruntime(const std::string& path) {
  static std::mutex lock;
  static auto& loaded = *new std::map<std::string, OrtLibrary*>;
  const std::lock_guard<std::mutex> guard(lock);
  OrtLibrary*& lib = loaded[path];
  if (!lib) lib = open(path);
  return *lib;
}

}  // namespace rescale::detail
