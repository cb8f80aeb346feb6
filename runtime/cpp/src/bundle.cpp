#include "bundle.hpp"

#include <algorithm>

#include "files.hpp"
#include "manifest.hpp"
#include "sha256.hpp"

namespace rescale::detail {
namespace {

constexpr std::string_view kFormat = "rescale-bundle";
constexpr int kMajor = 1;
constexpr std::uint64_t kMaxManifestBytes = 1 << 20, kMaxGraphBytes = 1 << 30;
constexpr std::int64_t kMaxField = 1 << 14, kMaxZChannels = 1 << 12, kMaxMemoryPerPixel = 1 << 24;

using Graphs = std::map<std::string, Graph>;

std::int64_t ranged(const Json& table, const char* name, std::int64_t least, std::int64_t most) {
  const std::int64_t n = number_field(table, name, least);
  if (n > most) throw DamagedTable{cat("'", std::string(name), "' is out of range")};
  return n;
}

Graph graph_of(const Json& entry) {
  return {string_field(entry, "file"), string_field(entry, "sha256"),
          static_cast<std::uint64_t>(ranged(entry, "memory_per_lr_pixel", 1, kMaxMemoryPerPixel)), tensors_field(entry, "inputs"),
          tensors_field(entry, "outputs")};
}

// Channels of z that the upscale graph takes.
std::int64_t z_channels_of(const Graphs& graphs) {
  for (const TensorInfo& t : graphs.at("upscale").inputs) {
    if (t.name == "z" && t.axes.size() == 4 && t.axes[1].size > 0 && t.axes[1].size <= kMaxZChannels) return t.axes[1].size;
  }
  throw DamagedTable{"graph 'upscale' takes no 'z'"};
}

// Refuses graphs with other inputs and outputs than rescale/contract.py gives them.
void check_interface(const Variant& v, const Graphs& graphs) {
  const auto fixed = [](std::int64_t n) { return Axis{"", n}; };
  const Axis batch{"batch", 0}, rows{"lr_height", 0}, columns{"lr_width", 0};
  const TensorInfo hr{"hr", "uint8", {batch, {"height", 0}, {"width", 0}, fixed(3)}};
  const TensorInfo lr{"lr", "uint8", {batch, rows, columns, fixed(v.lr_channels())}};
  const TensorInfo code{"code", "uint8", {batch, fixed(kLatentChannels), {"latent_height", 0}, {"latent_width", 0}}};
  std::vector<TensorInfo> latent;
  if (v.latent) latent.push_back({"z", "float32", {batch, fixed(z_channels_of(graphs)), rows, columns}});
  const auto with = [&](TensorInfo first) {
    std::vector<TensorInfo> out{std::move(first)};
    out.insert(out.end(), latent.begin(), latent.end());
    return out;
  };
  const auto check = [&](GraphId id, const std::vector<TensorInfo>& inputs, const std::vector<TensorInfo>& outputs) {
    const Graph& found = graphs.at(name_of(id));
    if (found.inputs == inputs && found.outputs == outputs) return;
    throw DamagedTable{cat("graph '", name_of(id), "' does not have the inputs and outputs of ", v.name)};
  };
  check(GraphId::downscale, {hr}, with(lr));
  check(GraphId::upscale, with(lr), {hr});
  if (!v.latent) return;
  check(GraphId::encoder, latent, {code});
  check(GraphId::decoder, {code}, latent);
}

Graphs graphs_of(const Json& table) {
  if (!table.is_object()) throw DamagedTable{"'graphs' is not a table"};
  Graphs out;
  for (const auto& [name, entry] : table.items()) out.emplace(name, graph_of(entry));
  return out;
}

int pixels_field(const Json& m, const char* name, const char* key = "lr_pixels") {
  return static_cast<int>(ranged(field(m, name), key, 0, kMaxField));
}

// What restoring alone needs, where it is less than `both`.
int upscale_field(const Json& m, const char* name, int both) {
  constexpr const char* kKey = "upscale_lr_pixels";
  if (!m.contains(name) || !m[name].contains(kKey)) return both;
  const int n = pixels_field(m, name, kKey);
  if (n > both) throw DamagedTable{"a number is out of range"};
  return n;
}

bool is_plain_name(const std::string& file) {
  const auto plain = [](char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  return !file.empty() && file.size() <= 100 && plain(file[0]) &&
         std::all_of(file.begin(), file.end(), [&](char c) { return plain(c) || c == '.' || c == '-'; });
}

// `rescale-bundle/1.1`: refuses another format or major version.
void check_format(const std::string& target, const std::string& format) {
  const std::size_t slash = std::min(format.find('/'), format.size());
  const std::string name = format.substr(0, slash), version = slash < format.size() ? format.substr(slash + 1) : "";
  const std::string major = version.substr(0, version.find('.'));
  if (major.empty() || major.size() > 6 || major.find_first_not_of("0123456789") != std::string::npos) {
    throw DamagedTable{cat("'format' is '", format, "'")};
  }
  if (name != kFormat) fail(Code::bundle, target, ": format '", name, "', wanted '", kFormat, "'");
  if (std::stoi(major) != kMajor) {
    fail(Code::bundle, target, ": bundle format ", version, "; this version reads ", kMajor, ".x: update, or export again");
  }
}

void read_manifest(Bundle& b, const std::string& target, const Json& m) {
  check_format(target, string_field(m, "format"));
  const std::string model = string_field(m, "model");
  const auto* variant = std::find_if(kVariants.begin(), kVariants.end(), [&](const Variant& v) { return v.name == model; });
  if (variant == kVariants.end()) {
    std::string names;
    for (const Variant& v : kVariants) names += cat(names.empty() ? "" : ", ", v.name);
    fail(Code::bundle, target, ": unknown model '", model, "': choose one of ", names);
  }
  b.variant = *variant;
  const std::int64_t scale = number_field(m, "scale", 0);
  if (scale != 2 && scale != 4) fail(Code::bundle, target, ": unknown scale ", scale, ": choose one of 2, 4");
  b.scale = static_cast<int>(scale);
  b.size = string_field(m, "size");
  b.weights = sha256_field(field(m, "weights"), "sha256");
  b.network = b.weights;
  if (m.contains("corrections")) {
    ranged(m["corrections"], "count", 0, kMaxField);
    b.network = sha256_field(m["corrections"], "sha256");
  }
  b.receptive_field = pixels_field(m, "receptive_field");
  b.halo = m.contains("halo") ? pixels_field(m, "halo") : b.receptive_field;
  if (b.halo > b.receptive_field) throw DamagedTable{"a number is out of range"};
  b.upscale_receptive_field = upscale_field(m, "receptive_field", b.receptive_field);
  b.upscale_halo = upscale_field(m, "halo", b.halo);
  if (m.contains("precisions")) {
    if (!m["precisions"].is_object()) throw DamagedTable{"'precisions' is not a table"};
    for (const auto& [name, graphs] : m["precisions"].items()) b.precisions[name] = graphs_of(graphs);
  }
  b.precisions.emplace("fp32", graphs_of(field(m, "graphs")));
  for (const auto& [precision, graphs] : b.precisions) {
    for (int i = 0; i < (b.variant.latent ? 4 : 2); i++) {
      if (graphs.count(kGraphNames[i])) continue;
      fail(Code::bundle, target, ": graph '", kGraphNames[i], "' is missing in ", precision, "; export the bundle again");
    }
    check_interface(b.variant, graphs);
  }
}

}  // namespace

Bundle::Bundle(const std::string& folder) : path(folder), place(absolute(folder)) {
  const std::string target = cat(folder, "/manifest.json");
  const Bytes raw = read_bounded(target, target, kMaxManifestBytes, Code::bundle,
                                 cat(folder, ": no bundle here (manifest.json is missing); make one with rescale-export"));
  try {
    read_manifest(*this, target, parse_json(raw));
  } catch (const DamagedTable& e) {
    fail(Code::bundle, target, ": damaged manifest: ", e.why, "; export the bundle again");
  }
}

const Graph& Bundle::graph(GraphId id, const std::string& precision) const {
  const auto graphs = precisions.find(precision);
  if (graphs == precisions.end()) {
    constexpr const char* kPrecisions[] = {"fp32", "mixed", "fp16"};
    if (std::find(std::begin(kPrecisions), std::end(kPrecisions), precision) == std::end(kPrecisions)) {
      fail(Code::input, "unknown precision '", precision, "': choose one of fp32, mixed, fp16");
    }
    std::string held;
    for (const char* known : kPrecisions) {
      if (precisions.count(known)) held += cat(held.empty() ? "" : ", ", known);
    }
    fail(Code::bundle, path, ": holds ", held, ", not '", precision, "'; export it with --precision ", precision);
  }
  const auto found = graphs->second.find(name_of(id));
  if (found == graphs->second.end()) fail(Code::bundle, path, ": ", title(), " has no graph '", name_of(id), "'");
  return found->second;
}

Bytes Bundle::read_graph(GraphId id, const std::string& precision) const {
  const Graph& g = graph(id, precision);
  if (!is_plain_name(g.file)) fail(Code::bundle, path, "/manifest.json: '", g.file, "' is not a plain file name");
  const std::string target = cat(path, "/", g.file);
  const std::string missing = cat(target, ": missing; export the bundle again");
  Bytes data = read_bounded(cat(place, "/", g.file), target, kMaxGraphBytes, Code::bundle, missing);
  const Digest digest = sha256(data.data(), data.size());
  const std::string found = hexadecimal(digest.data(), digest.size());
  if (found != g.sha256) {
    fail(Code::bundle, target, ": SHA-256 ", found.substr(0, 12), "..., the manifest says ", g.sha256.substr(0, 12),
         "...; the file was changed: export the bundle again");
  }
  return data;
}

std::uint64_t Bundle::memory(GraphId direction) const {
  const std::uint64_t most = graph(direction, "fp32").memory;
  if (!variant.latent) return most;
  return std::max(most, graph(direction == GraphId::downscale ? GraphId::encoder : GraphId::decoder, "fp32").memory);
}

std::uint64_t Bundle::z_channels() const {
  return static_cast<std::uint64_t>(z_channels_of(precisions.at("fp32")));
}

}  // namespace rescale::detail
