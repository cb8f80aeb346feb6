// Boxes of tiles: pure integers, in LR pixels; and how large a tile may be within a memory budget.
//
// A tile has a core, the output it is responsible for, and a region, the core with a halo on every side, which is what the network
// sees. Cores cover the picture without overlap. The plan is the Python package's, so that the results are equal.

#pragma once

#include <algorithm>

#include "common.hpp"

namespace rescale::detail {

// Half-open rectangle.
struct Box {
  int top = 0, bottom = 0, left = 0, right = 0;
  int height() const { return bottom - top; }
  int width() const { return right - left; }
};

struct Tile {
  Box core, region;
};

// A box with `halo` pixels on every side, moved outwards to multiples of `align`, cut to the picture.
Box grow(const Box& box, int halo, int align, int height, int width);

// Tiles of a picture, row by row, into `out`, whose memory is used again.
//   tile: of a core at most, at least `align` on each side
//   align: starts of cores and regions are multiples of this (-M: the latent's stride)
void plan(int height, int width, Size tile, int halo, int align, std::vector<Tile>& out);

// Core size that keeps a run within `budget` bytes, and a large picture in pieces that are as fast; the picture's own size for the
// whole. `cost`: bytes of live tensors per LR pixel. Throws where not even the smallest tile fits.
Size choose_tile(int height, int width, int halo, std::uint64_t cost, std::uint64_t budget);

// The smallest budget that `choose_tile` can work with, in bytes.
std::uint64_t least_budget(int halo, std::uint64_t cost);

constexpr std::uint64_t kFixedBytes = 64 << 20;  // needed before the first pixel

}  // namespace rescale::detail
