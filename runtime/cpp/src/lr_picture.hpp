#pragma once

#include "common.hpp"

namespace rescale::detail {

// Refuse a picture of the caller's whose planes are not of its size.
void check_planes(const Picture& picture);
void check_planes(const LrPicture& small);

bool fits(const Marker& marker, Size size);  // whether it was made for an LR picture of this size

}  // namespace rescale::detail
