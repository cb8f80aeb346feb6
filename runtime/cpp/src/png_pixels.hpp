// Pixels of PNG files, by libpng: from a copy that holds critical chunks only, so that no text bomb or damaged ancillary chunk
// reaches the decoder.

#pragma once

#include "png_file.hpp"

namespace rescale::detail {

struct Pixels {
  int width, height;
  int channels;  // 3, or 4 if the file has transparency in any form
  Bytes data;
};

// 8-bit RGB or RGBA of a PNG of any kind; 16 bits a sample lose their lower half, except for gray, which is refused.
Pixels decode_pixels(const std::vector<Chunk>& chunks, const std::string& name, std::uint64_t max_pixels);

// 1 to 4 interleaved channels of 8 bits -> PNG file; zlib level 0 to 9.
Bytes encode_pixels(const std::uint8_t* data, std::size_t width, std::size_t height, int channels, int level = 6);

void check_pixels(std::uint64_t width, std::uint64_t height, std::uint64_t most, const std::string& name);

}  // namespace rescale::detail
