// Text of files for terminals and logs: what Python's `rescale.console.printable` makes of it.

#include "common.hpp"

namespace rescale {
namespace {

// Code points that Python's str.isprintable refuses: control and format characters, separators but the space, surrogates, private
// use. Those that Unicode has not assigned yet are let through.
constexpr std::uint32_t kHidden[][2] = {
    {0x0, 0x1f},         {0x7f, 0xa0},       {0xad, 0xad},       {0x600, 0x605},     {0x61c, 0x61c},
    {0x6dd, 0x6dd},      {0x70f, 0x70f},     {0x890, 0x891},     {0x8e2, 0x8e2},     {0x1680, 0x1680},
    {0x180e, 0x180e},    {0x2000, 0x200f},   {0x2028, 0x202f},   {0x205f, 0x2064},   {0x2066, 0x206f},
    {0x3000, 0x3000},    {0xd800, 0xf8ff},   {0xfeff, 0xfeff},   {0xfff9, 0xfffb},   {0x110bd, 0x110bd},
    {0x110cd, 0x110cd},  {0x13430, 0x1343f}, {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0xe0001, 0xe0001},
    {0xe0020, 0xe007f},  {0xf0000, 0xffffd}, {0x100000, 0x10fffd}};

// Bytes of the code point that begins at `at`, or 0 where none in UTF-8 does: not too long, no surrogate, none beyond the last.
std::size_t length_at(const std::string& text, std::size_t at, std::uint32_t& point) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t first = byte(at);
  const std::size_t size = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  if (size == 0 || size > text.size() - at) return 0;
  point = size == 1 ? first : first & (0xffU >> (size + 1));
  for (std::size_t i = 1; i < size; i++) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
    point = point << 6 | (byte(at + i) & 0x3fU);
  }
  const bool wrong = (size == 3 && (point < 0x800 || (point >= 0xd800 && point < 0xe000))) ||
                     (size == 4 && (point < 0x10000 || point > 0x10ffff));
  return wrong ? 0 : size;
}

std::string escaped(std::uint32_t point) {
  if (point == '\t' || point == '\n' || point == '\r') return point == '\t' ? "\\t" : point == '\n' ? "\\n" : "\\r";
  const int digits = point < 0x100 ? 2 : point < 0x10000 ? 4 : 8;
  std::string out = digits == 2 ? "\\x" : digits == 4 ? "\\u" : "\\U";
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out += "0123456789abcdef"[point >> shift & 15];
  return out;
}

}  // namespace

namespace {

std::string on_one_line(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    std::uint32_t point = 0;
    std::size_t size = length_at(text, at, point);
    // As Python has a byte of a file name that is not UTF-8.
    if (size == 0) point = 0xdc00U + static_cast<std::uint8_t>(text[at]), size = 1;
    const bool hidden = std::any_of(std::begin(kHidden), std::end(kHidden),
                                    [&](const auto& range) { return range[0] <= point && point <= range[1]; });
    hidden ? out += escaped(point) : out.append(text, at, size);
    at += size;
  }
  return out;
}

}  // namespace

std::string printable(const std::string& text) {
  return detail::translated([&] { return on_one_line(text); });
}

}  // namespace rescale
