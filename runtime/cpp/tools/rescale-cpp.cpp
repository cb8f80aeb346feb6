// rescale-cpp: the commands down, up and info of `rescale`, for PNG files. Exit codes are its too: 0, 1 for an error, 2 for wrong
// usage, 3 for an LR file that cannot be restored exactly, 130 for Ctrl-C and 143 for SIGTERM.

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "arguments.hpp"
#include "paths.hpp"

namespace {

using rescale::printable;
using tool::Arguments;
using tool::kStream;
using tool::Usage;

rescale::Rescaler load(const Arguments& a) { return rescale::Rescaler::load(tool::bundle(a), tool::options(a)); }

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

// While the network runs, Ctrl-C and SIGTERM cancel it; elsewhere they end the program at once.
class Stoppable {
 public:
  explicit Stoppable(const rescale::Rescaler& net)
      : net_(net.with_progress([](std::uint64_t, std::uint64_t) { return stopped != 0; })) {
    for (std::size_t i = 0; i < 2; i++) {
      struct sigaction asks{};
      asks.sa_handler = [](int signal) { stopped = signal; };
      asks.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);  // a run may not end: the second signal ends the program
      ::sigemptyset(&asks.sa_mask);
      ::sigaction(kSignals[i], nullptr, &before_[i]);
      if (before_[i].sa_handler != SIG_IGN) ::sigaction(kSignals[i], &asks, nullptr);
    }
  }
  Stoppable(const Stoppable&) = delete;
  Stoppable& operator=(const Stoppable&) = delete;
  ~Stoppable() {
    for (std::size_t i = 0; i < 2; i++) ::sigaction(kSignals[i], &before_[i], nullptr);
  }
  const rescale::Rescaler* operator->() const { return &net_; }

 private:
  static constexpr int kSignals[2] = {SIGINT, SIGTERM};
  rescale::Rescaler net_;
  struct sigaction before_[2] = {};
};

void down(const Arguments& a) {
  tool::check_paths(a.paths[0], a.paths[1]);
  const std::string layout = a.choice("--layout", "alpha", {"alpha", "chunk", "strip"});
  const std::string carrier = a.choice("--carrier", "chunk", {"chunk", "text", "sidecar"});
  const bool keeps = a.choice("--alpha", "refuse", {"refuse", "keep"}) == "keep";
  const std::uint64_t most = a.max_pixels();
  if (a.paths[1] == kStream && carrier == "sidecar") {
    throw Usage{"--carrier sidecar: needs a file to lie beside, not standard output"};
  }
  const auto net = load(a);
  if (layout != "alpha" && net.info().lr_channels != 4) {
    const std::string why = ": " + net.info().title + " makes no fourth plane to lay out; leave the option out";
    throw rescale::Error(rescale::Code::input, "--layout " + layout + why);
  }
  const auto keep = keeps ? rescale::Picture::Alpha::keep : rescale::Picture::Alpha::refuse;
  const auto [source, name] = read_source(a.paths[0]);
  const auto picture = rescale::Picture::from_png(source, name, keep, most);
  const auto small = Stoppable(net)->downscale(picture);
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
  tool::check_paths(a.paths[0], a.paths[1]);
  const std::uint64_t most = a.max_pixels();
  const auto net = load(a);
  if (a.has("--trust-alpha") && net.info().lr_channels != 4) {
    const std::string why = "--trust-alpha: " + net.info().title + " reads no alpha channel; leave the option out";
    throw rescale::Error(rescale::Code::input, why);
  }
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
    const bool plain = net.info().lr_channels != 4 && !net.info().latent;
    const char* how = trusted ? "by its alpha channel, unverified" : plain ? "from its pixels, unverified" : "without auxiliary data";
    std::fprintf(stderr, "warning: %s: %s; restored %s\n", printable(small.name).c_str(), printable(detail).c_str(), how);
  }
  write_target(a.paths[1], picture.to_png());
  std::fprintf(report(a.paths[1]), "%s -> %s: %dx%d, %s\n", printable(a.paths[0]).c_str(), printable(a.paths[1]).c_str(),
               picture.size.width, picture.size.height, printable(net.info().title).c_str());
}

void info(const Arguments& a) {
  const auto small = read_lr(a.paths[0], a.max_pixels());
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
    std::fputs(tool::kUsage, stdout);
    return finished();
  }
  if (verb == "--version") {
    std::printf("%s\n", rescale::version());
    return finished();
  }
  const Arguments a = tool::parse(argc, argv);
  if (a.help) {
    std::fputs(tool::kUsage, stdout);
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
  std::fprintf(stderr, "error: %s\n%s", printable(e.why).c_str(), tool::kUsage);
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
