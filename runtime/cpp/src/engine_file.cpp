#include "engine_file.hpp"

#include <dirent.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "files.hpp"
#include "manifest.hpp"
#include "sha256.hpp"

namespace rescale::detail {
namespace {

constexpr std::string_view kFormat = "rescale-engine/1", kEngine = ".engine", kSidecar = ".engine.json";
constexpr std::uint64_t kMaxSidecarBytes = 1 << 20, kMaxEngineBytes = std::uint64_t{4} << 30;
constexpr const char* kAgain = "; build it again with rescale-engine build";

void read_sides(const Json& profile, const char* name, std::int64_t (&out)[3]) {
  const Json& sides = field(profile, name);
  if (!sides.is_array() || sides.size() != 3) throw DamagedTable{cat("profile ", name, " is not three positive numbers")};
  for (std::size_t i = 0; i < 3; i++) out[i] = number(sides[i], name, 1);
}

EngineInfo read_info(const std::string& sidecar) {
  const Bytes raw = read_bounded(sidecar, sidecar, kMaxSidecarBytes, Code::backend);
  EngineInfo out;
  out.path = sidecar.substr(0, sidecar.size() - kSidecar.size()) + std::string(kEngine);
  try {
    const Json m = parse_json(raw);
    const std::string format = string_field(m, "format");
    if (format != kFormat) fail(Code::backend, sidecar, ": format '", format, "', wanted '", kFormat, "'", kAgain);
    out.backend = string_field(m, "backend"), out.library = string_field(m, "library");
    out.graph = string_field(m, "graph"), out.precision = string_field(m, "precision");
    out.model = string_field(m, "model"), out.size = string_field(m, "size");
    out.weights = sha256_field(m, "weights"), out.onnx_sha256 = sha256_field(m, "onnx_sha256");
    out.engine_sha256 = sha256_field(m, "engine_sha256");
    out.scale = static_cast<int>(std::min<std::int64_t>(number_field(m, "scale", 1), 1 << 20));
    out.bytes = static_cast<std::uint64_t>(number_field(m, "bytes", 1));
    read_sides(field(m, "profile"), "min", out.low);
    read_sides(field(m, "profile"), "max", out.high);
    if (!field(m, "device").is_null()) out.device = string_field(m, "device");
    out.inputs = tensors_field(m, "inputs"), out.outputs = tensors_field(m, "outputs");
  } catch (const DamagedTable& e) {
    fail(Code::backend, sidecar, ": damaged sidecar: ", e.why, kAgain);
  }
  return out;
}

bool belongs(const EngineInfo& info, const Bundle& bundle, const Graph& graph) {
  return info.weights == bundle.network && info.model == bundle.variant.name && info.scale == bundle.scale &&
         info.onnx_sha256 == graph.sha256 && info.inputs == graph.inputs && info.outputs == graph.outputs;
}

// An engine of TensorRT for RTX begins with its own size and version, as observed.
void check_header(const EngineInfo& info, const Bytes& data) {
  constexpr std::string_view kMagic = "vtrt";
  if (data.size() < 64 || !std::equal(kMagic.begin(), kMagic.end(), data.begin())) {
    fail(Code::backend, info.path, ": not a TensorRT for RTX engine, though its sidecar says so", kAgain);
  }
  const std::uint64_t size = little32(&data[16]) | std::uint64_t{little32(&data[20])} << 32;
  if (size != data.size()) fail(Code::backend, info.path, ": truncated: ", data.size(), " bytes, its header says ", size, kAgain);
  const std::string version = cat(int{data[24]}, ".", int{data[25]}, ".", int{data[26]}, ".", int{data[27]});
  if (version != info.library) {
    fail(Code::backend, info.path, ": written by version ", version, ", the sidecar says ", info.library, kAgain);
  }
}

// The user's; a service may have no variable for it.
std::string home() {
  if (const char* named = std::getenv("HOME")) return named;
  char names[16384];
  passwd entry{}, *found = nullptr;
  if (::getpwuid_r(::getuid(), &entry, names, sizeof names, &found) != 0 || !found) {
    fail(Code::backend, "no home directory, where engines are kept: name a folder for them in RESCALE_CACHE");
  }
  return found->pw_dir;
}

}  // namespace

std::string engines_folder(const Bundle& bundle, const std::string& folder) {
  if (!folder.empty()) return folder;
  const auto variable = [](const char* name) { return text(std::getenv(name) ? std::getenv(name) : ""); };
  std::string cache = variable("RESCALE_CACHE");
  if (cache.empty()) {
#ifdef __APPLE__
    const std::string base = home() + "/Library/Caches";
#else
    const std::string named = variable("XDG_CACHE_HOME"), base = named.empty() ? home() + "/.cache" : named;
#endif
    cache = base + "/rescale";
  }
  // The size comes from a manifest: nothing in it may lead elsewhere.
  std::string size = bundle.size;
  for (char& c : size) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '.' && c != '-') c = '_';
  }
  return cat(cache, "/engines/", bundle.variant.name, "_x", bundle.scale, "_", size, "-", bundle.network.substr(0, 12));
}

std::vector<EngineInfo> find_engines(const std::string& folder, const Bundle& bundle, const std::string& backend,
                                     const std::string& precision, GraphId graph) {
  std::vector<std::string> names;
  const std::string prefix = cat(name_of(graph), ".", precision, ".", backend, ".");
  if (DIR* listing = ::opendir(folder.c_str())) {
    while (const dirent* entry = ::readdir(listing)) {
      const std::string name = entry->d_name;
      const bool ends =
          name.size() > kSidecar.size() && name.compare(name.size() - kSidecar.size(), kSidecar.size(), kSidecar) == 0;
      if (ends && name.rfind(prefix, 0) == 0) names.push_back(name);
    }
    ::closedir(listing);
  }
  std::sort(names.begin(), names.end());
  std::vector<EngineInfo> found;
  for (const std::string& name : names) {
    EngineInfo info = read_info(cat(folder, "/", name));
    const bool same = info.backend == backend && info.precision == precision && info.graph == name_of(graph);
    if (same && belongs(info, bundle, bundle.graph(graph, precision))) found.push_back(std::move(info));
  }
  const auto largest = [](const EngineInfo& i) {
    return static_cast<double>(i.high[0]) * static_cast<double>(i.high[1]) * static_cast<double>(i.high[2]);
  };
  std::stable_sort(found.begin(), found.end(), [&](const EngineInfo& a, const EngineInfo& b) { return largest(a) < largest(b); });
  return found;
}

Bytes read_engine(const EngineInfo& info) {
  Bytes data = read_bounded(info.path, info.path, kMaxEngineBytes, Code::backend,
                            cat(info.path, ": half-written: there is a sidecar but no engine", kAgain));
  if (data.size() != info.bytes) {
    const char* kind = data.size() < info.bytes ? "truncated" : "changed";
    fail(Code::backend, info.path, ": ", kind, ": ", data.size(), " bytes, the sidecar says ", info.bytes, kAgain);
  }
  const Digest digest = sha256(data.data(), data.size());
  if (hexadecimal(digest.data(), digest.size()) != info.engine_sha256) {
    fail(Code::backend, info.path, ": changed: its SHA-256 is not the sidecar's", kAgain);
  }
  if (info.backend == "tensorrt-rtx") check_header(info, data);
  return data;
}

}  // namespace rescale::detail
