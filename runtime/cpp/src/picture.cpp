// HR pictures as PNG. Every file is either handled exactly or refused with the way out; nothing is converted in silence.

#include <algorithm>

#include "colour.hpp"
#include "lr_picture.hpp"
#include "png_pixels.hpp"

namespace rescale {

using namespace detail;

Picture Picture::from_png(const Bytes& file, const std::string& name, Alpha rule, std::uint64_t max_pixels) {
  return translated([&] {
    if (file.empty()) damaged(name, ": empty");
    if (!is_png(file)) fail(Code::input, name, ": not a PNG file, the one kind that the C++ library reads");
    const std::vector<Chunk> chunks = read_chunks(file, name);
    const Header header = read_header(chunks, name);
    check_pixels(header.width, header.height, max_pixels, name);
    if (header.width > kMaxSide || header.height > kMaxSide) {
      fail(Code::input, name, ": sides of 1 to ", kMaxSide, " pixels were expected, got ", by(header.width, header.height),
           "; cut a larger picture into parts");
    }
    if (std::any_of(chunks.begin(), chunks.end(), [](const Chunk& c) { return c.kind == "acTL"; })) {
      fail(Code::input, name, ": has several frames; extract the one you want as a PNG first");
    }
    if (header.depth > 8) {
      fail(Code::input, name, ": more than 8 bits a sample, which the networks cannot hold; convert it to 8 bits first");
    }
    Pixels decoded = decode_pixels(chunks, name, max_pixels);
    Picture out;
    out.size = {decoded.width, decoded.height};
    out.gray = header.colour == 0 || header.colour == 4;
    out.colour = colour_from_png(chunks, name);
    if (decoded.channels == 3) {
      out.pixels = std::move(decoded.data);
      return out;
    }
    const std::size_t count = decoded.data.size() / 4;
    out.pixels.resize(count * 3);
    out.alpha.resize(count);
    for (std::size_t i = 0; i < count; i++) {
      std::copy_n(&decoded.data[4 * i], 3, &out.pixels[3 * i]);
      out.alpha[i] = decoded.data[4 * i + 3];
    }
    if (std::all_of(out.alpha.begin(), out.alpha.end(), [](std::uint8_t a) { return a == 255; })) {
      out.alpha.clear();
    } else if (rule == Alpha::refuse) {
      fail(Code::input, name, ": has real transparency; keep it beside the LR with --alpha keep, or flatten it first");
    }
    return out;
  });
}

void detail::check_planes(const Picture& picture) {
  const auto width = static_cast<std::size_t>(std::max(0, picture.size.width)),
             height = static_cast<std::size_t>(std::max(0, picture.size.height));
  if (width == 0 || picture.pixels.size() != width * height * 3 ||
      (!picture.alpha.empty() && picture.alpha.size() != width * height)) {
    fail(Code::input, "HR picture: its planes are not of its size, ", by(width, height));
  }
  check_colour(picture.colour, "HR picture");
}

Bytes Picture::to_png() const {
  return translated([&] {
    check_planes(*this);
    const std::size_t count = static_cast<std::size_t>(size.width) * static_cast<std::size_t>(size.height);
    const int base = gray ? 1 : 3, channels = base + (alpha.empty() ? 0 : 1);
    Bytes planes(count * static_cast<std::size_t>(channels));
    std::uint8_t* to = planes.data();
    for (std::size_t i = 0; i < count; i++, to += channels) {
      const std::uint8_t* rgb = &pixels[3 * i];
      if (gray) {
        to[0] = static_cast<std::uint8_t>((rgb[0] + rgb[1] + rgb[2] + 1) / 3);  // the mean, rounded: no third is a half
      } else {
        std::copy_n(rgb, 3, to);
      }
      if (!alpha.empty()) to[base] = alpha[i];
    }
    const Bytes file =
        encode_pixels(planes.data(), static_cast<std::size_t>(size.width), static_cast<std::size_t>(size.height), channels);
    return insert_chunks(file, colour);
  });
}

}  // namespace rescale
