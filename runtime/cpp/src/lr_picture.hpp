#pragma once

#include "common.hpp"

namespace rescale::detail {

// What to do with an HR picture in memory that is not RGB: the networks know nothing else, in Python either.
constexpr const char* kRgbOnly = ": give a gray sample three times; carry the alpha of RGBA beside RGB, or drop it";

// Refuses sides below 1 and above `most`.
void check_sides(Size hr, int most);

// Refuses rows of the caller's that overlap, or of which one lies beyond what can be addressed; `view` has a height.
void check_rows(const char* what, Source view);

// Refuse a picture of the caller's whose planes are not of its size, or whose colour chunks are none that are carried.
void check_planes(const Picture& picture);
void check_planes(const LrPicture& small);

bool fits(const Marker& marker, Size size);  // whether it was made for an LR picture of this size

}  // namespace rescale::detail
