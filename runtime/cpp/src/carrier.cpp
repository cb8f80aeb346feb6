#include "carrier.hpp"

#include <zlib.h>

#include <algorithm>
#include <map>

namespace rescale::detail {
namespace {

constexpr std::string_view kChunk = "reSc";  // ancillary, private, safe to copy
constexpr std::size_t kPartBytes = 1 << 20;
constexpr std::size_t kMaxTextBytes = 700'000;  // largest block as text
constexpr std::size_t kCopiedBytes = 1024;      // a block up to this size is also written as text by carrier "chunk"
const std::string kKeyword("rescale\0", 8);
constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

Bytes to_base64(const Bytes& data) {
  Bytes out;
  for (std::size_t i = 0; i < data.size(); i += 3) {
    const std::size_t n = std::min<std::size_t>(3, data.size() - i);
    std::uint32_t v = 0;
    for (std::size_t k = 0; k < 3; k++) v = v << 8 | (k < n ? data[i + k] : 0);
    for (std::size_t k = 0; k < 4; k++)
      out.push_back(k <= n ? static_cast<std::uint8_t>(kDigits[v >> (18 - 6 * k) & 63]) : std::uint8_t{'='});
  }
  return out;
}

Bytes from_base64(const Bytes& text) {
  Bytes out;
  std::uint32_t bits = 0;
  std::size_t digits = 0, padding = 0;
  for (const std::uint8_t c : text) {
    if (c == ' ' || (c >= '\t' && c <= '\r')) continue;
    const std::size_t value = kDigits.find(static_cast<char>(c));
    if (c == '=') {
      padding++;
    } else if (value == std::string_view::npos || padding) {
      throw DamagedBlock{"its text is not base64"};
    } else {
      bits = bits << 6 | static_cast<std::uint32_t>(value);
      if (++digits % 4 != 1) out.push_back(static_cast<std::uint8_t>(bits >> (6 - 2 * ((digits - 1) % 4))));
    }
  }
  if ((digits + padding) % 4 || padding > 2) throw DamagedBlock{"its text is not base64"};
  return out;
}

Bytes deflate_text(const Bytes& data) {
  uLongf size = compressBound(static_cast<uLong>(data.size()));
  Bytes out(size);
  if (compress2(out.data(), &size, data.data(), static_cast<uLong>(data.size()), 9) != Z_OK) throw std::bad_alloc();
  out.resize(size);
  return out;
}

// Bounded: a text bomb inflates to our limit and no further.
Bytes inflate_text(const std::uint8_t* data, std::size_t size) {
  Inflated text = inflate_bounded(data, size, 2 * kMaxTextBytes);
  if (text.status != Z_STREAM_END && text.status != Z_OK && text.status != Z_BUF_ERROR) {
    throw DamagedBlock{"its text does not inflate"};
  }
  if (text.status != Z_STREAM_END || text.data.size() > 2 * kMaxTextBytes) throw DamagedBlock{"its text is truncated or too long"};
  return std::move(text.data);
}

// The block from our own chunks; false if there are none.
bool join(const std::vector<Chunk>& chunks, Bytes& out) {
  std::map<std::size_t, const Chunk*> parts;
  const auto own =
      static_cast<std::size_t>(std::count_if(chunks.begin(), chunks.end(), [](const Chunk& c) { return c.kind == kChunk; }));
  for (const Chunk& chunk : chunks) {
    if (chunk.kind != kChunk) continue;
    if (chunk.data.size() < 4 || !chunk.intact) throw DamagedBlock{"a chunk is truncated or its CRC does not match"};
    const std::size_t index = std::size_t{chunk.data[0]} << 8 | chunk.data[1],
                      count = std::size_t{chunk.data[2]} << 8 | chunk.data[3];
    if (count != own || !parts.emplace(index, &chunk).second) throw DamagedBlock{cat(own, " of ", count, " parts are there")};
  }
  if (parts.empty()) return false;
  if (parts.rbegin()->first != own - 1) throw DamagedBlock{"its parts are not numbered in sequence"};
  for (const auto& part : parts) out.insert(out.end(), part.second->data.begin() + 4, part.second->data.end());
  return true;
}

// The block from tEXt, zTXt or iTXt, whichever a tool has made of our zTXt; false if there is none.
bool from_text(const std::vector<Chunk>& chunks, Bytes& out) {
  for (const Chunk& chunk : chunks) {
    const Bytes& d = chunk.data;
    if ((chunk.kind != "tEXt" && chunk.kind != "zTXt" && chunk.kind != "iTXt") || d.size() < kKeyword.size() ||
        !std::equal(kKeyword.begin(), kKeyword.end(), d.begin())) {
      continue;
    }
    std::size_t at = kKeyword.size();
    bool packed = chunk.kind == "zTXt";
    if (packed) {
      at = std::min(at + 1, d.size());  // compression method
    } else if (chunk.kind == "iTXt") {
      packed = at < d.size() && d[at] == 1;
      at = std::min(at + 2, d.size());           // compression flag and method
      for (int field = 0; field < 2; field++) {  // language, translated keyword
        const auto zero = std::find(d.begin() + static_cast<std::ptrdiff_t>(at), d.end(), 0);
        at = zero == d.end() ? d.size() : static_cast<std::size_t>(zero - d.begin()) + 1;
      }
    }
    out = from_base64(packed ? inflate_text(d.data() + at, d.size() - at)
                             : Bytes(d.begin() + static_cast<std::ptrdiff_t>(at), d.end()));
    return true;
  }
  return false;
}

}  // namespace

Chunks carry(const Bytes& block, const std::string& carrier) {
  if (carrier == "text" && block.size() > kMaxTextBytes) {
    fail(Code::input, block.size(), " bytes of auxiliary data; text holds ", kMaxTextBytes, ": use --carrier chunk or sidecar");
  }
  Chunks own;
  if (carrier == "chunk") {
    const std::size_t count = ceil_div(block.size(), kPartBytes);
    for (std::size_t i = 0; i < count; i++) {
      Bytes part;
      for (const std::size_t n : {i, count}) {
        part.push_back(static_cast<std::uint8_t>(n >> 8));
        part.push_back(static_cast<std::uint8_t>(n));
      }
      const auto first = block.begin() + static_cast<std::ptrdiff_t>(i * kPartBytes);
      part.insert(part.end(), first, first + static_cast<std::ptrdiff_t>(std::min(kPartBytes, block.size() - i * kPartBytes)));
      own.emplace_back(kChunk, std::move(part));
    }
  }
  if (carrier == "text" || (carrier == "chunk" && block.size() <= kCopiedBytes)) {
    Bytes body(kKeyword.begin(), kKeyword.end());
    body.push_back(0);  // compression method
    append(body, deflate_text(to_base64(block)));
    own.emplace_back("zTXt", std::move(body));
  }
  return own;
}

Carried find_block(const std::vector<Chunk>& chunks) {
  Carried found;
  for (const auto way : {join, from_text}) {
    try {
      Bytes copy;
      if (way(chunks, copy)) found.copies.push_back(std::move(copy));
    } catch (const DamagedBlock& e) {
      found.faults.push_back(e.why);
    }
  }
  return found;
}

}  // namespace rescale::detail
