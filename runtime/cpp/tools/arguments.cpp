#include "arguments.hpp"

#include <algorithm>
#include <cstdlib>

namespace tool {

const char* const kUsage =
    "usage: rescale-cpp down SOURCE.png TARGET.png --bundle FOLDER [options]\n"
    "       rescale-cpp up   SOURCE.png TARGET.png --bundle FOLDER [options]\n"
    "       rescale-cpp info SOURCE.png\n"
    "       SOURCE and TARGET may be -, standard input and output\n"
    "\n"
    "  -b, --bundle FOLDER    bundle made by rescale-export (or $RESCALE_BUNDLE)\n"
    "  --layout NAME          down, -A: fourth plane in alpha, chunk or strip [alpha]\n"
    "  --carrier NAME         down: marker and latent as chunk, text or sidecar [chunk]\n"
    "  --alpha RULE           down: refuse or keep real transparency [refuse]\n"
    "  --force                up: restore an LR that is not exact, without its auxiliary data\n"
    "  --trust-alpha          up, -A: restore a picture without marker, or changed, by its alpha channel, unchecked\n"
    "  --backend NAME         onnxruntime[:PROVIDER[,KEY=VALUE...]], tensorrt or tensorrt-rtx [onnxruntime]\n"
    "  --library PATH         libonnxruntime.so (or $RESCALE_ONNXRUNTIME)\n"
    "  --provider-library P   of a provider that is a library of its own\n"
    "  --engines FOLDER       TensorRT engines [the bundle's folder in the cache]\n"
    "  --precision NAME       fp32, mixed or fp16 [mixed on TensorRT, else fp32]\n"
    "  --threads N            CPU threads [all this process may use]\n"
    "  --memory SIZE          budget for the network, such as 2GB [half of what is available]\n"
    "  --tile N               tiles of this many LR pixels a side, instead of a budget\n"
    "  --exact                tiles with the whole receptive field around them\n"
    "  --max-pixels N         refuse pictures with more pixels [178956970]\n";

std::string Arguments::get(const std::string& name, const std::string& otherwise) const {
  const auto found = options.find(name);
  return found == options.end() ? otherwise : found->second;
}

std::string Arguments::choice(const std::string& name, const std::string& otherwise,
                              const std::vector<std::string>& known) const {
  const std::string value = get(name, otherwise);
  if (value == otherwise || std::find(known.begin(), known.end(), value) != known.end()) return value;
  std::string names;
  for (const std::string& k : known) names += (names.empty() ? "" : ", ") + k;
  throw Usage{name + " " + value + ": choose one of " + names};
}

std::uint64_t Arguments::number(const std::string& name, std::uint64_t otherwise, std::uint64_t least, std::uint64_t most) const {
  if (!has(name)) return otherwise;
  const std::string text = options.at(name);
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) {
    throw Usage{name + " " + text + ": a whole number is wanted"};
  }
  const std::uint64_t n = std::stoull(text);
  if (n < least) throw Usage{name + " " + text + ": at least " + std::to_string(least)};
  if (n > most) throw Usage{name + " " + text + ": at most " + std::to_string(most)};
  return n;
}

Arguments parse(int argc, char** argv) {
  Arguments out;
  for (int i = 2; i < argc; i++) {
    std::string word = argv[i];
    const std::size_t equals = word.rfind("--", 0) == 0 ? word.find('=') : std::string::npos;
    const bool joined = equals != std::string::npos;  // --name=value
    const std::string value = joined ? word.substr(equals + 1) : "";
    if (joined) word.resize(equals);
    if (word == "-b") word = "--bundle";
    if (word == "--help" || word == "-h") {
      out.help = true;
    } else if (word.rfind("-", 0) != 0 || word == "-") {
      out.paths.push_back(word);
    } else if (joined && (word == "--force" || word == "--trust-alpha" || word == "--exact")) {
      throw Usage{word + " takes no value"};
    } else if (word == "--force" || word == "--trust-alpha" || word == "--exact") {
      out.options[word] = "";
    } else if (std::string(kUsage).find(" " + word + " ") == std::string::npos) {
      throw Usage{"no option " + word};
    } else if (joined) {
      out.options[word] = value;
    } else if (++i == argc) {
      throw Usage{word + " takes a value"};
    } else {
      out.options[word] = argv[i];
    }
  }
  return out;
}

namespace {

// "2GB", "512mb" or bytes, in powers of 1024.
std::uint64_t memory(const std::string& text) {
  const std::map<std::string, double> units{{"", 1},        {"B", 1},        {"K", 1024},       {"KB", 1024},
                                            {"M", 1048576}, {"MB", 1048576}, {"G", 1073741824}, {"GB", 1073741824}};
  const std::size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  std::string unit = text.substr(digits);
  for (char& c : unit) c = static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  const auto found = units.find(unit);
  const std::string number = text.substr(0, digits);
  char* end = nullptr;
  const double bytes = found == units.end() ? 0 : std::strtod(number.c_str(), &end) * found->second;
  if (number.empty() || !end || *end || !(bytes >= 1) || bytes > 0x1p60) {
    throw Usage{"--memory " + text + ": a size is wanted, such as 2GB or 512MB"};
  }
  return static_cast<std::uint64_t>(bytes);
}

// NAME:PROVIDER,KEY=VALUE,... taken apart.
void read_backend(const std::string& text, rescale::Options& o) {
  const std::size_t colon = text.find(':');
  o.backend = text.substr(0, colon);
  const std::vector<std::string> known{"auto", "onnxruntime", "tensorrt", "tensorrt-rtx"};
  if (std::find(known.begin(), known.end(), o.backend) == known.end()) {
    throw Usage{"--backend " + o.backend + ": choose one of auto, onnxruntime, tensorrt, tensorrt-rtx"};
  }
  if (colon == std::string::npos) return;
  std::string rest = text.substr(colon + 1) + ",";
  bool named = false, good = true;
  for (std::size_t comma = rest.find(','); comma != std::string::npos; rest.erase(0, comma + 1), comma = rest.find(',')) {
    const std::string part = rest.substr(0, comma);
    const std::size_t equals = part.find('=');
    if (!named) {
      o.provider = part, named = true, good = !part.empty();
    } else if (equals == std::string::npos || equals == 0) {
      good = false;
    } else {
      o.provider_options.emplace_back(part.substr(0, equals), part.substr(equals + 1));
    }
  }
  if (good) return;
  const std::string wanted = o.backend + ":PROVIDER or " + o.backend + ":PROVIDER,KEY=VALUE";
  throw rescale::Error(rescale::Code::backend, "backend " + text + ": wanted is " + wanted);
}

}  // namespace

std::string bundle(const Arguments& a) {
  const char* variable = std::getenv("RESCALE_BUNDLE");
  std::string folder = a.get("--bundle", variable ? variable : "");
  if (folder.empty()) throw Usage{"--bundle is missing"};
  return folder;
}

rescale::Options options(const Arguments& a) {
  rescale::Options o;
  read_backend(a.get("--backend", o.backend), o);
  o.library = a.get("--library", "");
  o.provider_library = a.get("--provider-library", "");
  o.engines = a.get("--engines", "");
  o.precision = a.choice("--precision", "", {"fp32", "mixed", "fp16"});
  o.threads = static_cast<int>(a.number("--threads", 0, 0, rescale::kMaxThreads));
  if (a.has("--memory")) o.memory = memory(a.get("--memory", ""));
  const int tile = static_cast<int>(a.number("--tile", 0, 1, 1 << 28));
  o.tile = {tile, tile};
  o.exact = a.has("--exact");
  return o;
}

}  // namespace tool
