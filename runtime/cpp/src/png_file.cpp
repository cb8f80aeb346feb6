#include "png_file.hpp"

#include <zlib.h>

#include <algorithm>

#include "sha256.hpp"

namespace rescale::detail {
namespace {

constexpr std::uint8_t kSignature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
constexpr std::size_t kMaxChunks = 100'000;

// What pixels are decoded from.
bool is_critical(const std::string& kind) {
  return kind == "IHDR" || kind == "PLTE" || kind == "tRNS" || kind == "IDAT" || kind == "IEND";
}

std::uint32_t checksum(const std::uint8_t* kind_and_data, std::size_t size) {
  return static_cast<std::uint32_t>(crc32_z(0, kind_and_data, size));
}

void put_chunk(Bytes& out, const std::string& kind, const Bytes& data) {
  put_big32(out, static_cast<std::uint32_t>(data.size()));
  const std::size_t at = out.size();
  append(out, kind);
  append(out, data);
  put_big32(out, checksum(out.data() + at, out.size() - at));
}

// A chunk's name as Python writes bytes, for equal messages.
std::string quoted(const std::string& kind) {
  const bool doubled = kind.find('\'') != std::string::npos && kind.find('"') == std::string::npos;
  const std::string quote = doubled ? "\"" : "'";
  std::string out = "b" + quote;
  for (const char c : kind) {
    const auto value = static_cast<std::uint8_t>(c);
    if (c == '\t' || c == '\n' || c == '\r') {
      out += c == '\t' ? "\\t" : c == '\n' ? "\\n" : "\\r";
    } else if (c == '\\' || (c == '\'' && !doubled)) {
      out += std::string("\\") + c;
    } else if (value >= 0x20 && value < 0x7f) {
      out += c;
    } else {
      out += "\\x" + hexadecimal(&value, 1);
    }
  }
  return out + quote;
}

// Refuses what there is more than one way to understand: decoders differ in which of two headers they take, and skip what is late.
void check_order(const std::vector<Chunk>& chunks, const std::string& name) {
  const auto is_data = [](const Chunk& c) { return c.kind == "IDAT"; };
  const auto first = std::find_if(chunks.begin(), chunks.end(), is_data);
  const auto behind = std::find_if_not(first, chunks.end(), is_data);
  if (std::any_of(behind, chunks.end(), is_data)) damaged(name, ": damaged PNG: other chunks between its IDAT chunks");
  for (auto c = chunks.begin(); c != chunks.end(); ++c) {
    // By a capital letter a chunk says that it may not be left out.
    if (!is_critical(c->kind) && !(static_cast<std::uint8_t>(c->kind[0]) & 0x20)) {
      damaged(name, ": damaged PNG: a critical chunk ", quoted(c->kind), " that no PNG has");
    }
    const bool colours = c->kind == "PLTE" || c->kind == "tRNS";
    if (colours && c > first) damaged(name, ": damaged PNG: ", c->kind, " behind IDAT");
    const auto same = [&](const Chunk& other) { return other.kind == c->kind; };
    if ((colours || c->kind == "IHDR") && std::any_of(chunks.begin(), c, same)) {
      damaged(name, ": damaged PNG: more than one ", c->kind, " chunk");
    }
  }
}

// Refuses palettes and transparency that do not fit the pixels: of those decoders take a part, others nothing at all.
void check_colours(const std::vector<Chunk>& chunks, const std::string& name) {
  if (chunks.front().data.size() != 13) return;  // read_header refuses it
  const int depth = chunks.front().data[8], colour = chunks.front().data[9];
  const auto found = [&](const char* kind) {
    return std::find_if(chunks.begin(), chunks.end(), [&](const Chunk& c) { return c.kind == kind; });
  };
  const auto palette = found("PLTE"), transparency = found("tRNS");
  const std::size_t bytes = palette == chunks.end() ? 0 : palette->data.size();
  if (colour == 3) {
    if (palette == chunks.end()) damaged(name, ": damaged PNG: PLTE is missing");
    if (!bytes || bytes % 3 || (depth < 8 && bytes > std::size_t{3} << depth) || bytes > 768) {
      damaged(name, ": damaged PNG: PLTE of ", bytes, " bytes for pixels of ", depth, " bits");
    }
    if (transparency < palette) damaged(name, ": damaged PNG: tRNS before PLTE");
  }
  if (transparency == chunks.end()) return;
  const std::size_t size = transparency->data.size();
  if ((colour == 0 && size != 2) || (colour == 2 && size != 6) || (colour == 3 && (!size || size > bytes / 3))) {
    damaged(name, ": damaged PNG: tRNS of ", size, " bytes");
  }
}

}  // namespace

bool is_png(const Bytes& file) { return file.size() >= 8 && std::equal(kSignature, kSignature + 8, file.begin()); }

std::vector<Chunk> read_chunks(const Bytes& file, const std::string& name) {
  if (!is_png(file)) damaged(name, ": not a PNG file");
  std::vector<Chunk> chunks;
  for (std::size_t at = 8; at + 12 <= file.size() && chunks.size() < kMaxChunks;) {
    const std::uint8_t* p = file.data() + at;
    const std::size_t length = big32(p);
    const std::string kind(reinterpret_cast<const char*>(p) + 4, 4);
    if (length > file.size() - at - 12) {
      damaged(name, ": truncated PNG: a ", quoted(kind), " chunk of ", length, " bytes ends after the file");
    }
    const bool intact = checksum(p + 4, length + 4) == big32(p + 8 + length);
    if (!intact && is_critical(kind)) {
      damaged(name, ": damaged PNG: the CRC of a ", kind, " chunk does not match");
    }
    chunks.push_back({kind, Bytes(p + 8, p + 8 + length), intact});
    at += 12 + length;
    if (kind == "IEND") break;
  }
  const bool whole = !chunks.empty() && chunks.front().kind == "IHDR" && chunks.back().kind == "IEND" &&
                     std::any_of(chunks.begin(), chunks.end(), [](const Chunk& c) { return c.kind == "IDAT"; });
  if (!whole) damaged(name, ": truncated or damaged PNG: IHDR, IDAT or IEND is missing");
  check_order(chunks, name);
  check_colours(chunks, name);
  return chunks;
}

Header read_header(const std::vector<Chunk>& chunks, const std::string& name) {
  const Bytes& d = chunks.front().data;
  if (d.size() != 13) damaged(name, ": damaged PNG: IHDR has ", d.size(), " bytes, wanted 13");
  const Header header{big32(d.data()), big32(d.data() + 4), d[8], d[9], d[12] != 0};
  if (!header.width || !header.height) {
    damaged(name, ": damaged PNG: size ", by(header.width, header.height));
  }
  return header;
}

Inflated inflate_bounded(const std::uint8_t* data, std::size_t size, std::size_t most) {
  z_stream z{};
  if (inflateInit(&z) != Z_OK) throw std::bad_alloc();
  struct Ender {
    z_stream* z;
    ~Ender() { inflateEnd(z); }
  } ender{&z};
  Inflated out{{}, Z_OK};
  std::uint8_t piece[16384];
  z.next_in = const_cast<std::uint8_t*>(data);
  z.avail_in = static_cast<uInt>(size);
  while (out.status == Z_OK && out.data.size() < most) {
    z.next_out = piece;
    z.avail_out = sizeof piece;
    out.status = inflate(&z, Z_NO_FLUSH);
    out.data.insert(out.data.end(), piece, z.next_out);
  }
  return out;
}

Bytes insert_chunks(const Bytes& file, const Chunks& added) {
  constexpr std::size_t kBehindHeader = 8 + 12 + 13;  // signature and IHDR
  Bytes out(file.begin(), file.begin() + kBehindHeader);
  for (const auto& [kind, data] : added) put_chunk(out, kind, data);
  out.insert(out.end(), file.begin() + kBehindHeader, file.end());
  return out;
}

}  // namespace rescale::detail
