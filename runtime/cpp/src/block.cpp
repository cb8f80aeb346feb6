#include "block.hpp"

#include <algorithm>

namespace rescale::detail {
namespace {

constexpr std::string_view kMagic = "RSCL";
constexpr int kMajor = 1, kMinor = 0;
constexpr std::size_t kHeader = 164, kDigest = 32, kMaxSections = 16;
constexpr std::string_view kLayouts[] = {"none", "alpha", "chunk", "strip"};
constexpr std::string_view kSourceModes[] = {"rgb", "gray"};

template <std::size_t N>
std::uint8_t code_of(const std::string_view (&names)[N], const std::string& name) {
  return static_cast<std::uint8_t>(std::find(names, names + N, name) - names);
}

Bytes from_hexadecimal(const std::string& text) {
  Bytes out;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2)
    out.push_back(static_cast<std::uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
  return out;
}

}  // namespace

std::string contradiction(const Marker& m) {
  if (m.scale != 2 && m.scale != 4) return cat("scale ", m.scale, " where 2 or 4 is wanted");
  const auto s = static_cast<std::uint64_t>(m.scale);
  if (m.hr_width && m.hr_height && m.lr_width == ceil_div(m.hr_width, s) && m.lr_height == ceil_div(m.hr_height, s)) return "";
  return cat("HR ", by(m.hr_width, m.hr_height), " and LR ", by(m.lr_width, m.lr_height), " do not belong together at scale ",
             m.scale);
}

Bytes encode_block(const Block& block) {
  const Marker& m = block.marker;
  Bytes out;
  append(out, kMagic);
  out.insert(out.end(), {kMajor, kMinor, static_cast<std::uint8_t>(m.scale), code_of(kLayouts, m.layout)});
  for (const std::uint64_t side : {m.hr_width, m.hr_height, m.lr_width, m.lr_height})
    put_little32(out, static_cast<std::uint32_t>(side));
  out.push_back(code_of(kSourceModes, m.source_mode));
  out.resize(32, 0);
  append(out, m.model);
  out.resize(32 + kMaxModelName, 0);
  append(out, from_hexadecimal(m.weights));
  append(out, block.rgb_digest);
  append(out, block.auxiliary_digest);
  put_little32(out, static_cast<std::uint32_t>(block.sections.size()));
  for (const auto& [name, data] : block.sections) {
    append(out, name);
    put_little32(out, static_cast<std::uint32_t>(data.size()));
    append(out, data);
  }
  append(out, sha256(out.data(), out.size()));
  return out;
}

Block decode_block(const Bytes& data) {
  if (data.size() < kHeader + kDigest || !std::equal(kMagic.begin(), kMagic.end(), data.begin())) {
    throw DamagedBlock{"the block is too short or has no magic"};
  }
  const std::uint8_t* p = data.data();
  if (p[4] > kMajor) throw NewerFormat{cat("format version ", int{p[4]}, ", this program reads up to ", kMajor)};
  const std::size_t end = data.size() - kDigest;
  const Digest digest = sha256(p, end);
  if (!std::equal(digest.begin(), digest.end(), p + end)) throw DamagedBlock{"the block does not match its digest"};
  const std::size_t layout = p[7], mode = p[24], count = little32(p + 160);
  const int scale = p[6];
  if (p[4] < 1 || layout >= std::size(kLayouts) || mode >= std::size(kSourceModes) || count > kMaxSections ||
      (scale != 2 && scale != 4)) {
    throw DamagedBlock{"a field of the block is out of range"};
  }
  Block block;
  Marker& m = block.marker;
  m.scale = scale;
  m.hr_width = little32(p + 8), m.hr_height = little32(p + 12);
  m.lr_width = little32(p + 16), m.lr_height = little32(p + 20);
  if (const std::string why = contradiction(m); !why.empty()) throw DamagedBlock{why};
  std::size_t at = kHeader;
  for (std::size_t i = 0; i < count; i++) {
    if (at + 8 > end) throw DamagedBlock{"a section is truncated"};
    const std::string name(reinterpret_cast<const char*>(p) + at, 4);
    const std::size_t length = little32(p + at + 4);
    if (length > end - at - 8 || block.section(name)) throw DamagedBlock{"a section is truncated or occurs twice"};
    block.sections.emplace_back(name, Bytes(p + at + 8, p + at + 8 + length));
    at += 8 + length;
  }
  if (at != end) throw DamagedBlock{"bytes are left over behind the sections"};
  m.model.assign(reinterpret_cast<const char*>(p) + 32, kMaxModelName);
  m.model.erase(m.model.find_last_not_of('\0') + 1);
  if (std::any_of(m.model.begin(), m.model.end(), [](char c) { return static_cast<std::uint8_t>(c) > 127; })) {
    throw DamagedBlock{"the model name is not ASCII"};
  }
  m.layout = kLayouts[layout];
  m.source_mode = kSourceModes[mode];
  m.weights = hexadecimal(p + 64, 32);
  std::copy(p + 96, p + 128, block.rgb_digest.begin());
  std::copy(p + 128, p + 160, block.auxiliary_digest.begin());
  return block;
}

}  // namespace rescale::detail
