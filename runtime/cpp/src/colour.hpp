// Chunks that say how a picture is to be shown: iCCP, cICP, gAMA, cHRM, sRGB, pHYs, eXIf. Carried along byte for byte.

#pragma once

#include "png_file.hpp"

namespace rescale::detail {

// First of each kind, intact ones only; refuses more than 8 MiB.
Chunks colour_from_png(const std::vector<Chunk>& chunks, const std::string& name);

// The LR file's section META: name 4, length 4 little-endian, body, repeated.
Chunks unpack_colour(const Bytes& data, const std::string& name);

}  // namespace rescale::detail
