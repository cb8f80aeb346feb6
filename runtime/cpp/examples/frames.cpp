// Raw video frames through a network: rgb24 on standard input, RGB or RGBA (-A) LR frames on standard output, or back.
//
//   ffmpeg -i film.mp4 -f rawvideo -pix_fmt rgb24 - | rescale-frames down BUNDLE 1280x720 > lr.raw
//   rescale-frames up BUNDLE 1280x720 < lr.raw | ffplay -f rawvideo -pixel_format rgb24 -video_size 1280x720 -

#include <rescale/rescale.hpp>

#include <cstdio>
#include <exception>
#include <string>

int main(int argc, char** argv) try {
  rescale::Size hr;
  char behind;
  if (argc != 4 || std::sscanf(argv[3], "%5dx%5d%c", &hr.width, &hr.height, &behind) != 2) hr = {};
  const std::string verb = argc > 1 ? argv[1] : "";
  if (argc != 4 || (verb != "down" && verb != "up") || hr.width < 1 || hr.height < 1) {
    std::fprintf(stderr, "usage: %s down|up BUNDLE WIDTHxHEIGHT, the size of the HR frames\n", argv[0]);
    return 2;
  }
  const auto net = rescale::Rescaler::load(argv[2]);
  if (net.info().latent) throw rescale::Error(rescale::Code::input, "raw frames cannot carry an -M model's latent code");
  const rescale::Size lr = net.lr_size(hr);
  const auto bytes = [](rescale::Size s, int channels) {
    return std::size_t(s.width) * std::size_t(s.height) * std::size_t(channels);
  };
  const int channels = net.info().lr_channels;
  rescale::Bytes large(bytes(hr, 3)), small(bytes(lr, channels));  // the only memory, used again for each frame
  rescale::Bytes &in = verb == "down" ? large : small, &out = verb == "down" ? small : large;

  for (long frame = 0;; frame++) {
    const std::size_t got = std::fread(in.data(), 1, in.size(), stdin);
    if (got == 0) break;
    if (got < in.size())
      throw rescale::Error(rescale::Code::input, "frame " + std::to_string(frame) + ": the stream ends within it");
    if (verb == "down") {
      net.downscale({large.data(), hr.width, hr.height, 3}, {small.data(), lr.width, lr.height, channels});
    } else {
      net.upscale({small.data(), lr.width, lr.height, channels}, {large.data(), hr.width, hr.height, 3});
    }
    if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size())
      throw rescale::Error(rescale::Code::output, "standard output failed");
  }
  return std::fflush(stdout) ? 1 : 0;
} catch (const std::exception& e) {  // rescale::Error is one, and so is memory that cannot be had
  std::fprintf(stderr, "error: %s\n", rescale::printable(e.what()).c_str());
  return 1;
}
