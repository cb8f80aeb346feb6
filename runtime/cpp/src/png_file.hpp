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

// Refuses what is no PNG, truncated, without IHDR, IDAT or IEND, or damaged in a critical chunk.
std::vector<Chunk> read_chunks(const Bytes& file, const std::string& name);
Header read_header(const std::vector<Chunk>& chunks, const std::string& name);

// Puts chunks right behind IHDR, where all readers expect colour and private chunks.
Bytes insert_chunks(const Bytes& file, const Chunks& added);

}  // namespace rescale::detail
