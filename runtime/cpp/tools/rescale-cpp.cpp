// rescale-cpp: the commands down, up and info of `rescale`, for PNG files. Exit codes are its too: 0, 1 for an error, 2 for wrong
// usage, 3 for an LR file that cannot be restored exactly, 130 for Ctrl-C and 143 for SIGTERM.

#include <rescale/rescale.hpp>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace {

using rescale::printable;

constexpr const char* kUsage =
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

struct Usage {
  std::string why;
};

struct Arguments {
  bool help = false;
  std::vector<std::string> paths;
  std::map<std::string, std::string> options;

  std::string get(const std::string& name, const std::string& otherwise) const {
    const auto found = options.find(name);
    return found == options.end() ? otherwise : found->second;
  }
  bool has(const std::string& name) const { return options.count(name) != 0; }
  std::uint64_t number(const std::string& name, std::uint64_t otherwise) const {
    if (!has(name)) return otherwise;
    const std::string text = options.at(name);
    if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) {
      throw Usage{name + " " + text + ": a whole number is wanted"};
    }
    return std::stoull(text);
  }
};

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

rescale::Rescaler load(const Arguments& a) {
  const char* variable = std::getenv("RESCALE_BUNDLE");
  const std::string bundle = a.get("--bundle", variable ? variable : "");
  if (bundle.empty()) throw Usage{"--bundle is missing"};
  rescale::Options o;
  o.backend = a.get("--backend", o.backend);
  if (const std::size_t colon = o.backend.find(':'); colon != std::string::npos) {
    std::string rest = o.backend.substr(colon + 1) + ",";
    o.backend.resize(colon);
    for (std::size_t comma = rest.find(','); comma != std::string::npos; rest.erase(0, comma + 1), comma = rest.find(',')) {
      const std::string part = rest.substr(0, comma);
      const std::size_t equals = part.find('=');
      if (o.provider.empty()) {
        o.provider = part;
      } else if (equals == std::string::npos || equals == 0) {
        throw Usage{"--backend: " + part + " is not KEY=VALUE"};
      } else {
        o.provider_options.emplace_back(part.substr(0, equals), part.substr(equals + 1));
      }
    }
    if (o.provider.empty()) throw Usage{"--backend " + o.backend + ": a provider is wanted behind the colon"};
  }
  o.library = a.get("--library", "");
  o.provider_library = a.get("--provider-library", "");
  o.engines = a.get("--engines", "");
  o.precision = a.get("--precision", "");
  o.threads = static_cast<int>(std::min<std::uint64_t>(a.number("--threads", 0), 4096));
  if (a.has("--memory")) o.memory = memory(a.get("--memory", ""));
  const int tile = static_cast<int>(std::min<std::uint64_t>(a.number("--tile", 0), 1 << 28));
  o.tile = {tile, tile};
  o.exact = a.has("--exact");
  return rescale::Rescaler::load(bundle, o);
}

constexpr const char* kStream = "-";

// All bytes of a file or of standard input, and its name in messages.
std::pair<rescale::Bytes, std::string> read_source(const std::string& path) {
  if (path != kStream) return {rescale::read_file(path), path};
  constexpr std::size_t kPiece = 1 << 20, kMost = std::size_t{2} << 30;
  rescale::Bytes data;
  for (;;) {
    const std::size_t had = data.size();
    data.resize(had + kPiece);
    const std::size_t got = std::fread(data.data() + had, 1, kPiece, stdin);
    data.resize(had + got);
    if (std::ferror(stdin)) {
      throw rescale::Error(rescale::Code::input, std::string("<stdin>: cannot read: ") + std::strerror(errno));
    }
    if (data.size() > kMost) throw rescale::Error(rescale::Code::input, "<stdin>: larger than 2147483648 bytes");
    if (got == 0) return {std::move(data), "<stdin>"};
  }
}

void write_target(const std::string& path, const rescale::Bytes& data) {
  if (path != kStream) return rescale::write_file(path, data);
  if (std::fwrite(data.data(), 1, data.size(), stdout) != data.size() || std::fflush(stdout) != 0) {
    throw rescale::Error(rescale::Code::output, std::string("output: ") + std::strerror(errno));
  }
}

// Where what was done is told: not among the bytes of a picture.
std::FILE* report(const std::string& target) { return target == kStream ? stderr : stdout; }

volatile std::sig_atomic_t stopped = 0;  // the signal that came

void check_name(const std::string& target) {
  if (target == kStream) return;
  if (target.size() < 5 || target.compare(target.size() - 4, 4, ".png") != 0) {
    throw rescale::Error(rescale::Code::input, target + ": this program writes PNG: name it with .png");
  }
}

// While the network runs, Ctrl-C and SIGTERM cancel it; elsewhere they end the program at once.
class Stoppable {
 public:
  explicit Stoppable(const rescale::Rescaler& net)
      : net_(net.with_progress([](std::uint64_t, std::uint64_t) { return stopped != 0; })) {
    for (std::size_t i = 0; i < 2; i++) {
      before_[i] = std::signal(kSignals[i], [](int signal) { stopped = signal; });
      if (before_[i] == SIG_IGN) std::signal(kSignals[i], SIG_IGN);
    }
  }
  Stoppable(const Stoppable&) = delete;
  Stoppable& operator=(const Stoppable&) = delete;
  ~Stoppable() {
    for (std::size_t i = 0; i < 2; i++) std::signal(kSignals[i], before_[i]);
  }
  const rescale::Rescaler* operator->() const { return &net_; }

 private:
  static constexpr int kSignals[2] = {SIGINT, SIGTERM};
  rescale::Rescaler net_;
  void (*before_[2])(int) = {};
};

void down(const Arguments& a) {
  check_name(a.paths[1]);
  const std::string rule = a.get("--alpha", "refuse");
  if (a.paths[1] == kStream && a.get("--carrier", "") == "sidecar") {
    throw rescale::Error(rescale::Code::input, "--carrier sidecar: needs a file to lie beside, not standard output");
  }
  if (rule != "refuse" && rule != "keep") throw Usage{"--alpha " + rule + ": choose refuse or keep"};
  const auto net = load(a);
  const auto keep = rule == "keep" ? rescale::Picture::Alpha::keep : rescale::Picture::Alpha::refuse;
  const auto [source, name] = read_source(a.paths[0]);
  const auto picture = rescale::Picture::from_png(source, name, keep, a.number("--max-pixels", rescale::kMaxPixels));
  const auto small = Stoppable(net)->downscale(picture);
  const std::string layout = a.get("--layout", "alpha"), carrier = a.get("--carrier", "chunk");
  if (a.paths[1] == kStream) {
    write_target(kStream, small.to_png(layout, carrier).data);
  } else {
    small.save(a.paths[1], layout, carrier);
  }
  std::fprintf(report(a.paths[1]), "%s -> %s: %dx%d -> %dx%d, %s\n", printable(a.paths[0]).c_str(), printable(a.paths[1]).c_str(),
               picture.size.width, picture.size.height, small.size.width, small.size.height, printable(net.info().title).c_str());
}

rescale::LrPicture read_lr(const std::string& path, std::uint64_t most) {
  if (path != kStream) return rescale::LrPicture::open(path, most);
  const auto [data, name] = read_source(path);
  return rescale::LrPicture::from_png(data, name, most);
}

// An LR file; one that is no whole picture cannot be restored, as one that was changed cannot.
rescale::LrPicture open_lr(const std::string& path, std::uint64_t most) {
  try {
    return read_lr(path, most);
  } catch (const rescale::Error& e) {
    if (e.state() != rescale::State::damaged) throw;
    throw rescale::Error(rescale::Code::lr_file, std::string(e.what()) + ": take an undamaged copy", e.state());
  }
}

void up(const Arguments& a) {
  check_name(a.paths[1]);
  const auto net = load(a);
  const std::uint64_t most = a.number("--max-pixels", rescale::kMaxPixels);
  const auto small = open_lr(a.paths[0], most);
  const rescale::Size becomes = net.restored_size(small);
  if (static_cast<std::uint64_t>(becomes.width) * static_cast<std::uint64_t>(becomes.height) > most) {
    const std::string limit = std::to_string(most);
    throw rescale::Error(rescale::Code::input,
                         small.name + ": would become larger than " + limit + " pixels; raise the limit with --max-pixels");
  }
  const auto [state, detail] = small.verdict(net.info().model, net.info().scale, net.info().weights);
  const auto picture = Stoppable(net)->restore(small, {!a.has("--force"), a.has("--trust-alpha")});
  if (state != rescale::State::exact) {
    const bool trusted = a.has("--trust-alpha") && !small.unverified_alpha.empty() && net.info().lr_channels == 4 &&
                         state != rescale::State::other_model;
    const char* how = trusted ? "by its alpha channel, unverified" : "without auxiliary data";
    std::fprintf(stderr, "warning: %s: %s; restored %s\n", printable(small.name).c_str(), printable(detail).c_str(), how);
  }
  write_target(a.paths[1], picture.to_png());
  std::fprintf(report(a.paths[1]), "%s -> %s: %dx%d, %s\n", printable(a.paths[0]).c_str(), printable(a.paths[1]).c_str(),
               picture.size.width, picture.size.height, printable(net.info().title).c_str());
}

void info(const Arguments& a) {
  const auto small = read_lr(a.paths[0], a.number("--max-pixels", rescale::kMaxPixels));
  std::printf("source: %s\nstate: %s\nlr_size: %dx%d\n", printable(a.paths[0]).c_str(), to_string(small.state), small.size.width,
              small.size.height);
  if (!small.detail.empty()) std::printf("detail: %s\n", printable(small.detail).c_str());
  if (small.has_marker) {
    const rescale::Marker& m = small.marker;
    std::printf("model: %s\nscale: %d\nhr_size: %llux%llu\nweights: %s\nlayout: %s\nsource_mode: %s\n", printable(m.model).c_str(),
                m.scale, static_cast<unsigned long long>(m.hr_width), static_cast<unsigned long long>(m.hr_height),
                m.weights.c_str(), m.layout.c_str(), m.source_mode.c_str());
  }
}

// What was printed has gone where it should: a full disk shows when the buffer is written.
int finished() {
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return 0;
  std::fprintf(stderr, "error: output: %s\n", std::strerror(errno));
  return 1;
}

int run(int argc, char** argv) {
  // ONNX Runtime from 1.32 on keeps an identity of the machine and sends what it runs on, unless told before it is loaded; 0 lets it.
  // The library leaves that to whoever it is built into: an environment is the whole process's.
  ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  const std::string verb = argc > 1 ? argv[1] : "";
  if (verb == "--help" || verb == "-h") {
    std::fputs(kUsage, stdout);
    return finished();
  }
  if (verb == "--version") {
    std::printf("%s\n", rescale::version());
    return finished();
  }
  const Arguments a = parse(argc, argv);
  if (a.help) {
    std::fputs(kUsage, stdout);
    return finished();
  }
  if (verb != "down" && verb != "up" && verb != "info") throw Usage{"down, up or info is wanted"};
  if (a.paths.size() != (verb == "info" ? 1U : 2U)) throw Usage{verb + ": wrong number of files"};
  verb == "down" ? down(a) : verb == "up" ? up(a) : info(a);
  return finished();
}

}  // namespace

int main(int argc, char** argv) try {
  return run(argc, argv);
} catch (const Usage& e) {
  std::fprintf(stderr, "error: %s\n%s", printable(e.why).c_str(), kUsage);
  return 2;
} catch (const rescale::Error& e) {
  if (e.code() == rescale::Code::cancelled) {
    std::fputs("error: interrupted\n", stderr);
    return 128 + stopped;
  }
  std::fprintf(stderr, "error: %s\n", printable(e.what()).c_str());
  return e.code() == rescale::Code::lr_file ? 3 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "error: %s\n", printable(e.what()).c_str());
  return 1;
}
