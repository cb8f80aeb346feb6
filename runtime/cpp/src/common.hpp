// What all files share: errors, text, byte order, the variants of the paper.

#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include "rescale/rescale.hpp"

namespace rescale::detail {

static_assert(sizeof(std::size_t) >= 8, "64-bit systems only: the bytes of a picture must fit a size");

constexpr int kLatentChannels = 4;  // of the -M latent code
constexpr int kLatentStride = 4;    // LR pixels per latent position along an axis
constexpr int kMaxSide = 65535;     // longest side of an HR picture, in pixels

inline const std::string& text(const std::string& s) { return s; }
inline std::string text(const char* s) { return s; }
inline std::string text(char* s) { return s; }
inline std::string text(std::string_view s) { return std::string(s); }
template <class T>
std::string text(T number) {
  return std::to_string(number);
}

// Text of all arguments, one behind the other.
template <class... T>
std::string cat(const T&... parts) {
  std::string out;
  (out.append(text(parts)), ...);
  return out;
}

// A message as it is read through `what()`, which a zero byte in a name from a file would end.
inline std::string message(std::string text) {
  for (std::size_t at = text.find('\0'); at != std::string::npos; at = text.find('\0', at)) text.replace(at, 1, "\\x00");
  return text;
}

template <class... T>
[[noreturn]] void fail(Code code, const T&... parts) {
  throw Error(code, message(cat(parts...)));
}

// Refuses an LR file that is in `state`.
template <class... T>
[[noreturn]] void refuse(State state, const T&... parts) {
  throw Error(Code::lr_file, message(cat(parts...)), state);
}

// Runs `work`: nothing but `Error` leaves the library.
template <class Work>
auto translated(const Work& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    throw Error(Code::out_of_memory, "not enough memory");
  } catch (const std::length_error&) {
    throw Error(Code::out_of_memory, "more memory than there can be");
  }
}

// The bytes of a file could be read, but are no whole picture.
template <class... T>
[[noreturn]] void damaged(const T&... parts) {
  throw Error(Code::input, message(cat(parts...)), State::damaged);
}

inline std::string by(std::uint64_t width, std::uint64_t height) { return cat(width, "x", height); }

// Of numbers that are not negative; no sum can overflow.
template <class T>
T ceil_div(T a, T b) {
  return a / b + (a % b != 0);
}

inline std::uint32_t big32(const std::uint8_t* p) {
  return std::uint32_t{p[0]} << 24 | std::uint32_t{p[1]} << 16 | std::uint32_t{p[2]} << 8 | p[3];
}
inline std::uint32_t little32(const std::uint8_t* p) {
  return std::uint32_t{p[3]} << 24 | std::uint32_t{p[2]} << 16 | std::uint32_t{p[1]} << 8 | p[0];
}
inline void put_big32(Bytes& out, std::uint32_t v) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(v >> shift));
}
inline void put_little32(Bytes& out, std::uint32_t v) {
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<std::uint8_t>(v >> shift));
}
template <class Range>
void append(Bytes& out, const Range& data) {
  const std::size_t at = out.size();
  out.resize(at + data.size());
  std::copy(data.begin(), data.end(), out.begin() + static_cast<std::ptrdiff_t>(at));
}

// One network of the paper.
struct Variant {
  std::string_view name;
  bool alpha;   // a fourth LR channel carries high frequencies (-A)
  bool latent;  // a quantised latent code travels beside the LR (-M)
  int lr_channels() const { return alpha ? 4 : 3; }
};

constexpr std::array<Variant, 6> kVariants{{{"irn", false, false},
                                            {"irn_a", true, false},
                                            {"irn_m", false, true},
                                            {"dlv_irn", false, false},
                                            {"dlv_irn_a", true, false},
                                            {"dlv_irn_m", false, true}}};

// 8-bit alpha codes 1..255 with 128 neutral, and the zigzag by which a file stores them:
// 128, 127, 129, 126, 130, ... 1, 255 -> 255, 254, 253, 252, 251, ... 2, 1. A stored 0, which no writer of ours makes, is neutral.
constexpr std::uint8_t kNeutral = 128;

struct Zigzag {
  std::array<std::uint8_t, 256> store{}, load{};
  constexpr Zigzag() {
    load[0] = kNeutral;
    for (int code = 1; code <= 255; code++) {
      const int d = code - kNeutral;
      const int value = d >= 0 ? 255 - 2 * d : 255 - (-2 * d - 1);
      store[static_cast<std::size_t>(code)] = static_cast<std::uint8_t>(value);
      load[static_cast<std::size_t>(value)] = static_cast<std::uint8_t>(code);
    }
  }
};
inline constexpr Zigzag kZigzag{};

}  // namespace rescale::detail
