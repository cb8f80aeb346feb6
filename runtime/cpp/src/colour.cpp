#include "colour.hpp"

#include <zlib.h>

#include <algorithm>

namespace rescale::detail {
namespace {

constexpr std::string_view kKinds[] = {"iCCP", "cICP", "gAMA", "cHRM", "sRGB", "pHYs", "eXIf"};
constexpr std::size_t kMaxBytes = 8 << 20;

bool is_carried(const std::string& kind) { return std::find(std::begin(kKinds), std::end(kKinds), kind) != std::end(kKinds); }

void check_size(const Chunks& chunks, const std::string& name) {
  std::size_t size = 0;
  for (const auto& chunk : chunks) size += chunk.second.size();
  if (size > kMaxBytes) {
    fail(Code::input, name, ": ", size, " bytes of colour and EXIF metadata; at most ", kMaxBytes, " are carried: strip some");
  }
}

// Whether a chunk iCCP holds a whole profile that is for gray. As in Python: one that is damaged or longer than what is carried
// is none.
bool is_gray_profile(const Bytes& chunk) {
  constexpr std::size_t kName = 80, kSpace = 16;
  const auto name_end = std::find(chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(std::min(chunk.size(), kName)), 0);
  const auto at = static_cast<std::size_t>(name_end - chunk.begin()) + 2;
  if (at - 2 == std::min(chunk.size(), kName) || at > chunk.size()) return false;
  const Inflated profile = inflate_bounded(chunk.data() + at, chunk.size() - at, kMaxBytes);
  const Bytes& data = profile.data;
  constexpr std::string_view kGray = "GRAY";
  return profile.status == Z_STREAM_END && data.size() >= kSpace + kGray.size() && data.size() <= kMaxBytes &&
         std::equal(kGray.begin(), kGray.end(), data.begin() + kSpace);
}

}  // namespace

Chunks colour_for_rgb(const Chunks& chunks) {
  Chunks shown;
  for (const auto& chunk : chunks) {
    if (chunk.first != "iCCP" || !is_gray_profile(chunk.second)) shown.push_back(chunk);
  }
  return shown;
}

void check_colour(const Chunks& chunks, const std::string& name) {
  for (const auto& chunk : chunks) {
    if (is_carried(chunk.first)) continue;
    std::string kinds;
    for (const std::string_view kind : kKinds) kinds += cat(kinds.empty() ? "" : ", ", kind);
    fail(Code::input, name, ": a chunk '", printable(chunk.first), "' is not carried; ", kinds, " are");
  }
  check_size(chunks, name);
}

Bytes pack_colour(const Chunks& chunks) {
  Bytes out;
  for (const auto& [kind, data] : chunks) {
    append(out, kind);
    put_little32(out, static_cast<std::uint32_t>(data.size()));
    append(out, data);
  }
  return out;
}

Chunks colour_from_png(const std::vector<Chunk>& chunks, const std::string& name) {
  Chunks found;
  for (const Chunk& chunk : chunks) {
    const auto same = [&](const auto& other) { return other.first == chunk.kind; };
    if (chunk.intact && is_carried(chunk.kind) && std::none_of(found.begin(), found.end(), same)) {
      found.emplace_back(chunk.kind, chunk.data);
    }
  }
  check_size(found, name);
  return found;
}

Chunks unpack_colour(const Bytes& data, const std::string& name) {
  Chunks found;
  std::size_t at = 0;
  while (data.size() - at >= 8) {
    const std::string kind(data.begin() + static_cast<std::ptrdiff_t>(at), data.begin() + static_cast<std::ptrdiff_t>(at + 4));
    const std::size_t length = little32(data.data() + at + 4);
    if (!is_carried(kind) || length > data.size() - at - 8) fail(Code::input, name, ": damaged metadata section");
    const auto* body = data.data() + at + 8;
    found.emplace_back(kind, Bytes(body, body + length));
    at += 8 + length;
  }
  if (at != data.size()) fail(Code::input, name, ": damaged metadata section");
  check_size(found, name);
  return found;
}

}  // namespace rescale::detail
