// PNG at the level of chunks: bounded reading, and insertion of chunks into an encoded file.

#pragma once

#include "common.hpp"

namespace rescale::detail {

struct Chunk {
  std::string kind;
  Bytes data;
  bool intact;  // its CRC matches
};

// IHDR.
struct Header {
  std::uint32_t width, height;  // pixels
  int depth, colour;            // bits per sample, colour type
  bool interlaced;
};

bool is_png(const Bytes& file);

// Refuses what is no PNG, truncated, without IHDR, IDAT or IEND, damaged in a critical chunk, or with critical chunks that are
// unknown or not where the standard has them.
std::vector<Chunk> read_chunks(const Bytes& file, const std::string& name);
Header read_header(const std::vector<Chunk>& chunks, const std::string& name);

// The beginning of a zlib stream in a chunk, and zlib's status there: Z_STREAM_END where it is the whole.
struct Inflated {
  Bytes data;
  int status;
};

// Bounded: a bomb inflates to `most` bytes, and less than a piece of 16 KiB further.
Inflated inflate_bounded(const std::uint8_t* data, std::size_t size, std::size_t most);

// Puts chunks right behind IHDR, where all readers expect colour and private chunks.
Bytes insert_chunks(const Bytes& file, const Chunks& added);

}  // namespace rescale::detail
