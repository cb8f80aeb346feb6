// Reads records from standard input and prints what each came to, a line a record: a state, or the code of an error.
//   record: kind 1, length 4 little-endian, bytes, length 4 of a side-car (0xffffffff: none), its bytes
//   kinds:  L an LR file; exact ones are written again in every layout. P a picture. M a manifest, in the folder argv[1].
//           B the path of a bundle to run, with threads, tiles and odd sizes, whole and cancelled; argv[2] is ONNX Runtime's
//           library.

#include <rescale/rescale.hpp>

#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

bool read(void* data, std::size_t size) { return std::fread(data, 1, size, stdin) == size; }

rescale::Bytes take(bool* missing = nullptr) {
  std::uint8_t n[4];
  if (!read(n, 4)) std::abort();
  const std::uint32_t size = n[0] | std::uint32_t{n[1]} << 8 | std::uint32_t{n[2]} << 16 | std::uint32_t{n[3]} << 24;
  if (missing && size == 0xffffffffU) return *missing = true, rescale::Bytes();
  rescale::Bytes out(size);
  if (!read(out.data(), size)) std::abort();
  return out;
}

std::string lr_file(const rescale::Bytes& data, const rescale::Bytes* sidecar) {
  auto small = rescale::LrPicture::from_png(data, "mutant", 4'000'000, sidecar);
  if (small.state == rescale::State::exact) {
    for (const char* layout : {"alpha", "chunk", "strip"}) {
      for (const char* carrier : {"chunk", "text", "sidecar"}) small.to_png(layout, carrier);
    }
  }
  return to_string(small.state);
}

std::string manifest(const std::string& folder, const rescale::Bytes& data, const char* library) {
  rescale::write_file(folder + "/manifest.json", data);
  rescale::Options options;
  options.library = library;
  rescale::Rescaler::load(folder, options);
  return "loaded";
}

// A marker of the caller's own that cannot be is refused before it leads anywhere.
void refuse_odd_markers(const rescale::Rescaler& net, const rescale::LrPicture& small) {
  for (int kind = 0; kind < 6; kind++) {
    auto odd = small;
    if (kind == 0) odd.marker.hr_width = 3;
    if (kind == 1) odd.marker.hr_height = std::uint64_t{1} << 40;
    if (kind == 2) odd.marker.weights = "xyz";
    if (kind == 3) odd.marker.weights.resize(62);
    if (kind == 4) odd.marker.model.assign(33, 'a');
    if (kind == 5) odd.marker.lr_width = 3;
    try {
      if (kind < 2) net.restore(odd);
      if (kind >= 2) odd.to_png();
      std::abort();
    } catch (const rescale::Error& e) {
      if (e.code() != rescale::Code::input) std::abort();
    }
  }
}

std::string bundle(const rescale::Bytes& path, const char* library) {
  rescale::Options options;
  options.library = library;
  options.tile = {8, 12};
  const auto net = rescale::Rescaler::load({path.begin(), path.end()}, options);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([&net, i] {
      rescale::Picture picture;
      picture.size = {31 + i, 23 + 2 * i};
      picture.gray = i == 3;
      picture.pixels.resize(std::size_t(picture.size.width) * std::size_t(picture.size.height) * 3);
      for (std::size_t k = 0; k < picture.pixels.size(); k++) picture.pixels[k] = static_cast<std::uint8_t>(k * 7 + k / 91);
      const auto file = net.downscale(picture).to_png();
      const auto small = rescale::LrPicture::from_png(file.data, "own");
      rescale::Picture::from_png(net.restore(small).to_png(), "restored");
      net.restore(small, {false, true});
      refuse_odd_markers(net, small);
      std::uint64_t calls = 0;
      const auto watched = net.with_progress([&](std::uint64_t done, std::uint64_t total) { return ++calls, done == total / 2; });
      try {
        watched.restore(small);
        std::abort();
      } catch (const rescale::Error& e) {
        if (e.code() != rescale::Code::cancelled || calls == 0) std::abort();
      }
      struct Own {};
      try {
        net.with_progress([](std::uint64_t, std::uint64_t) -> bool { throw Own(); }).downscale(picture);
        std::abort();
      } catch (const Own&) {
      }
    });
  }
  for (auto& t : threads) t.join();
  return "ran";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  for (char kind; read(&kind, 1);) {
    bool none = false;
    const rescale::Bytes data = take(), sidecar = take(&none);
    std::string outcome;
    try {
      if (kind == 'L') outcome = lr_file(data, none ? nullptr : &sidecar);
      if (kind == 'P')
        rescale::Picture::from_png(data, "mutant", rescale::Picture::Alpha::keep, 4'000'000).to_png(), outcome = "read";
      if (kind == 'M') outcome = manifest(argv[1], data, argv[2]);
      if (kind == 'B') outcome = bundle(data, argv[2]);
    } catch (const rescale::Error& e) {
      outcome = "error " + std::to_string(static_cast<int>(e.code()));
    }
    std::printf("%s\n", outcome.c_str());
  }
}
