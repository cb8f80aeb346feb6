// Chunks that say how a picture is to be shown: iCCP, cICP, gAMA, cHRM, sRGB, pHYs, eXIf. Carried along byte for byte.

#pragma once

#include "png_file.hpp"

namespace rescale::detail {

// First of each kind, intact ones only; refuses more than 8 MiB.
Chunks colour_from_png(const std::vector<Chunk>& chunks, const std::string& name);

// What an RGB picture may show: all but an ICC profile for gray, which PNG allows beside gray alone.
Chunks colour_for_rgb(const Chunks& chunks);

// Refuses chunks of the caller's of which one is not carried, or more than 8 MiB.
void check_colour(const Chunks& chunks, const std::string& name);

// The LR file's section META, and its inverse: name 4, length 4 little-endian, body, repeated.
Bytes pack_colour(const Chunks& chunks);
Chunks unpack_colour(const Bytes& data, const std::string& name);

}  // namespace rescale::detail
