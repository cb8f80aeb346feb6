// How the integrity block travels in a PNG: as chunks `reSc`, as text, or beside the file.

#pragma once

#include "block.hpp"
#include "png_file.hpp"

namespace rescale::detail {

// Chunks that carry an encoded block by a carrier, "chunk", "text" or "sidecar". Throws where text cannot hold it.
Chunks carry(const Bytes& block, const std::string& carrier);

struct Carried {
  std::vector<Bytes> copies;        // of the block, each in whole; own chunk first
  std::vector<std::string> faults;  // what is wrong with other copies
};

Carried find_block(const std::vector<Chunk>& chunks);

}  // namespace rescale::detail
