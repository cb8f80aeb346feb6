#include "tiling.hpp"

#include <cmath>

namespace rescale::detail {
namespace {

constexpr double kArenaFactor = 4.0;      // resident bytes per byte of live tensors, at the most
constexpr int kMinCore = 16;              // smallest core in LR pixels
constexpr double kPiecePixels = 1 << 20;  // LR pixels of a piece beyond which larger ones are no faster
constexpr double kPieceWork = 1.05;       // work that pieces of that size may repeat in their halos
constexpr double kNever = 1e300;          // work of what cannot be

struct Choice {
  Size core;
  double work;  // how much is repeated; 1: nothing
};

// Core of a strip or a square whose region has at most so many pixels.
Choice best(int width, int halo, double pixels) {
  const double most = std::max(0.0, pixels);
  const double rows = std::floor(pixels / width) - 2.0 * halo;
  double root = std::floor(std::sqrt(most));
  while (root * root > most) root--;
  while ((root + 1) * (root + 1) <= most) root++;
  const double side = root - 2.0 * halo;
  const double strip = rows >= kMinCore ? (rows + 2 * halo) / rows : kNever;
  const double edge = (side + 2 * halo) / side;
  const double square = side >= kMinCore ? edge * edge : kNever;
  // A core larger than the picture is the picture: the plan cuts it, and no number overflows.
  const auto whole = [](double n) { return static_cast<int>(std::min(n, 1e9)); };
  if (strip <= square) return {{width, strip < kNever ? whole(rows) : 0}, strip};
  return {{whole(side), whole(side)}, square};
}

int down(int value, int align) { return std::max(0, value < 0 ? 0 : value / align * align); }
int up(int value, int align, int limit) { return std::min(limit, ceil_div(value, align) * align); }

// Edge `i` of `count` pieces of an axis, as even as `align` allows.
int edge(int length, int align, int count, int i) {
  const std::int64_t units = ceil_div(length, align);
  return i == count ? length : static_cast<int>(units * i / count) * align;
}

int pieces(int length, int size, int align) {
  return size >= length ? 1 : ceil_div(ceil_div(length, align), std::max(1, size / align));
}

}  // namespace

Box grow(const Box& box, int halo, int align, int height, int width) {
  return {down(box.top - halo, align), up(box.bottom + halo, align, height), down(box.left - halo, align),
          up(box.right + halo, align, width)};
}

void plan(int height, int width, Size tile, int halo, int align, std::vector<Tile>& out) {
  if (std::min(tile.width, tile.height) < align || halo < 0) {
    fail(Code::input, "tiles of ", tile.width, "x", tile.height, " LR pixels with a halo of ", halo, ": at least ", align,
         " and 0 are wanted");
  }
  out.clear();
  const int rows = pieces(height, tile.height, align), columns = pieces(width, tile.width, align);
  for (int r = 0; r < rows; r++) {
    for (int c = 0; c < columns; c++) {
      const Box core{edge(height, align, rows, r), edge(height, align, rows, r + 1), edge(width, align, columns, c),
                     edge(width, align, columns, c + 1)};
      out.push_back({core, grow(core, halo, align, height, width)});
    }
  }
}

std::uint64_t least_budget(int halo, std::uint64_t cost) {
  const double side = kMinCore + 2.0 * halo;
  return kFixedBytes + static_cast<std::uint64_t>(std::ceil(kArenaFactor * static_cast<double>(cost) * side * side)) + 1;
}

Size choose_tile(int height, int width, int halo, std::uint64_t cost, std::uint64_t budget) {
  const double all = static_cast<double>(height) * width;
  const double left = static_cast<double>(budget) - static_cast<double>(kFixedBytes);
  const double pixels = std::trunc(left / (kArenaFactor * static_cast<double>(cost)));
  const Size whole{width, height};
  const bool fits = all <= pixels;
  if (fits && all <= kPiecePixels) return whole;
  if (std::min(pixels, all) > kPiecePixels) {
    const Choice choice = best(width, halo, kPiecePixels);
    if (choice.work <= kPieceWork) return choice.core;
  }
  if (fits) return whole;
  const Choice choice = best(width, halo, pixels);
  if (choice.work >= kNever) {
    fail(Code::input, "a memory budget of ", budget >> 20, " MB is too small for this model: at least ",
         (least_budget(halo, cost) >> 20) + 1, " MB");
  }
  return choice.core;
}

}  // namespace rescale::detail
