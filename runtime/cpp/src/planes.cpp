#include "planes.hpp"

namespace rescale::detail {

Bytes encode_plane(const Bytes& plane, std::uint64_t width, std::uint64_t height) {
  return encode_pixels(plane.data(), width, height, 1, 9);
}

Bytes decode_plane(const Bytes& coded, std::uint64_t width, std::uint64_t height, const std::string& name) {
  const std::vector<Chunk> chunks = read_chunks(coded, name);
  const Header h = read_header(chunks, name);
  if (h.width != width || h.height != height || h.depth != 8 || h.colour != 0) {
    fail(Code::input, name, ": a coded plane of ", by(h.width, h.height), ", wanted ", by(width, height), " gray with 8 bits");
  }
  const Pixels pixels = decode_pixels(chunks, name, width * height);
  Bytes plane(width * height);
  for (std::size_t i = 0; i < plane.size(); i++) plane[i] = pixels.data[i * static_cast<unsigned>(pixels.channels)];
  return plane;
}

Bytes add_strip(const Bytes& rgb, const Bytes& plane, std::size_t width, std::size_t height) {
  Bytes out = rgb;
  out.resize((height + strip_rows(height)) * width * 3, kNeutral);
  for (std::size_t y = 0; y < height; y++) {
    std::uint8_t* row = out.data() + (height + y / 3) * width * 3 + y % 3;
    for (std::size_t x = 0; x < width; x++) row[3 * x] = plane[y * width + x];
  }
  return out;
}

Bytes take_strip(Bytes& rgb, std::size_t width, std::size_t height) {
  Bytes plane(width * height);
  for (std::size_t y = 0; y < height; y++) {
    const std::uint8_t* row = rgb.data() + (height + y / 3) * width * 3 + y % 3;
    for (std::size_t x = 0; x < width; x++) plane[y * width + x] = row[3 * x];
  }
  rgb.resize(width * height * 3);
  return plane;
}

}  // namespace rescale::detail
