// 8-bit planes as bytes: sections of the LR file as gray PNGs, and -A's plane as a strip of rows below the picture.

#pragma once

#include "png_pixels.hpp"

namespace rescale::detail {

Bytes encode_plane(const Bytes& plane, std::uint64_t width, std::uint64_t height);

// Inverse of `encode_plane`, bounded by the size that is expected, before pixels are decoded.
Bytes decode_plane(const Bytes& coded, std::uint64_t width, std::uint64_t height, const std::string& name);

// Rows that a strip adds to a picture.
constexpr std::uint64_t strip_rows(std::uint64_t height) { return (height + 2) / 3; }

// Appends a plane below an RGB picture: three of its rows in R, G and B of one row.
Bytes add_strip(const Bytes& rgb, const Bytes& plane, std::size_t width, std::size_t height);

// Splits the strip off `rgb`, which keeps `height` rows; returns the plane.
Bytes take_strip(Bytes& rgb, std::size_t width, std::size_t height);

}  // namespace rescale::detail
