#include "colour.hpp"

#include <algorithm>

namespace rescale::detail {
namespace {

constexpr std::string_view kKinds[] = {"iCCP", "cICP", "gAMA", "cHRM", "sRGB", "pHYs", "eXIf"};
constexpr std::size_t kMaxBytes = 8 << 20;

bool is_carried(const std::string& kind) { return std::find(std::begin(kKinds), std::end(kKinds), kind) != std::end(kKinds); }

Chunks bounded(Chunks chunks, const std::string& name) {
  std::size_t size = 0;
  for (const auto& chunk : chunks) size += chunk.second.size();
  if (size > kMaxBytes) {
    fail(Code::input, name, ": ", size, " bytes of colour and EXIF metadata; at most ", kMaxBytes, " are carried: strip some");
  }
  return chunks;
}

}  // namespace

Chunks colour_from_png(const std::vector<Chunk>& chunks, const std::string& name) {
  Chunks found;
  for (const Chunk& chunk : chunks) {
    const auto same = [&](const auto& other) { return other.first == chunk.kind; };
    if (chunk.intact && is_carried(chunk.kind) && std::none_of(found.begin(), found.end(), same)) {
      found.emplace_back(chunk.kind, chunk.data);
    }
  }
  return bounded(std::move(found), name);
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
  return bounded(std::move(found), name);
}

}  // namespace rescale::detail
