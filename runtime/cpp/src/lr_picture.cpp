// The LR file: a picture that carries what its restoration needs. docs/file-format.md is the contract.
//
// Reading never guesses: it names the state of the file, and pixels, alpha and latent are used only if their digests match.

#include <algorithm>

#include "carrier.hpp"
#include "colour.hpp"
#include "files.hpp"
#include "lr_picture.hpp"
#include "planes.hpp"

namespace rescale {

using namespace detail;

namespace {

constexpr const char* kStates[] = {"exact",        "pixels-changed", "auxiliary-stripped", "foreign", "other-model",
                                   "newer-format", "damaged"};

// Alpha codes of a picture's alpha channel, if it has one.
Bytes stored_alpha(const Pixels& pixels) {
  Bytes out;
  if (pixels.channels != 4) return out;
  out.resize(pixels.data.size() / 4);
  for (std::size_t i = 0; i < out.size(); i++) out[i] = kZigzag.load[pixels.data[4 * i + 3]];
  return out;
}

Bytes colours(const Pixels& pixels) {
  if (pixels.channels == 3) return pixels.data;
  Bytes out(pixels.data.size() / 4 * 3);
  for (std::size_t i = 0; i * 3 < out.size(); i++) std::copy_n(&pixels.data[4 * i], 3, &out[3 * i]);
  return out;
}

Digest auxiliary_digest(const Bytes& alpha, const Bytes& latent) {
  Sha256 hash;
  hash.update(alpha.data(), alpha.size());
  hash.update(latent.data(), latent.size());
  return hash.finish();
}

bool matches(const Digest& digest, const std::uint8_t* wanted) { return std::equal(digest.begin(), digest.end(), wanted); }

Block block_of(const LrPicture& small) {
  Block block;
  block.marker = small.marker;
  std::copy_n(small.rgb_digest, 32, block.rgb_digest.begin());
  std::copy_n(small.auxiliary_digest, 32, block.auxiliary_digest.begin());
  return block;
}

std::string resized(std::uint64_t width, std::uint64_t height, std::uint64_t wanted_width, std::uint64_t wanted_height) {
  return cat("it has ", by(width, height), " pixels where its marker says ", by(wanted_width, wanted_height));
}

void set(LrPicture& small, State state, std::string detail) {
  small.state = state;
  small.detail = std::move(detail);
}

// What the sections hold, for a picture whose pixels are right; throws where one is damaged.
void read_sections(LrPicture& small, const Block& block, const Pixels& pixels, Bytes& alpha, Bytes& latent) {
  const Marker& m = block.marker;
  if (m.layout == "alpha") {
    // A missing alpha channel reads as opaque, which is neutral: some writers drop one that is opaque everywhere.
    alpha = stored_alpha(pixels);
    if (alpha.empty()) alpha.assign(m.lr_width * m.lr_height, kNeutral);
  } else if (const Bytes* coded = block.section("ALPH")) {
    alpha = decode_plane(*coded, m.lr_width, m.lr_height, small.name);
  }
  if (const Bytes* coded = block.section("LATN")) {
    const std::uint64_t stride = kLatentStride;
    latent = decode_plane(*coded, ceil_div(m.lr_width, stride), kLatentChannels * ceil_div(m.lr_height, stride), small.name);
  }
  if (const Bytes* coded = block.section("SRCA")) small.source_alpha = decode_plane(*coded, m.hr_width, m.hr_height, small.name);
  if (const Bytes* coded = block.section("META")) small.colour = unpack_colour(*coded, small.name);
}

// Compares pixels and auxiliary data with the block; keeps only what matches. Throws where the HR picture's transparency is there
// and has more than `max_pixels`.
void judge(LrPicture& small, const Block& block, const Pixels& pixels, std::uint64_t max_pixels) {
  const Marker& m = block.marker;
  small.has_marker = true;
  small.marker = m;
  small.sections = block.sections;
  std::copy(block.rgb_digest.begin(), block.rgb_digest.end(), small.rgb_digest);
  std::copy(block.auxiliary_digest.begin(), block.auxiliary_digest.end(), small.auxiliary_digest);
  const std::uint64_t rows = m.lr_height + (m.layout == "strip" ? strip_rows(m.lr_height) : 0);
  const auto width = static_cast<std::uint64_t>(pixels.width), height = static_cast<std::uint64_t>(pixels.height);
  if (width != m.lr_width || height != rows) {
    return set(small, State::pixels_changed, resized(width, height, m.lr_width, rows));
  }
  Bytes alpha, latent;
  if (m.layout == "strip") {
    alpha = take_strip(small.rgb, m.lr_width, m.lr_height);
    small.size.height = static_cast<int>(m.lr_height);
  }
  if (!matches(sha256(small.rgb.data(), small.rgb.size()), small.rgb_digest)) {
    if (m.layout == "alpha") small.unverified_alpha = stored_alpha(pixels);
    return set(small, State::pixels_changed, "its pixels are not those its marker was made for");
  }
  if (block.section("SRCA") && m.hr_width * m.hr_height > max_pixels) {  // both are below 2^32
    fail(Code::input, small.name, ": carries the transparency of an HR picture of ", by(m.hr_width, m.hr_height),
         ", above the limit of ", max_pixels, " pixels; raise it with --max-pixels");
  }
  try {
    read_sections(small, block, pixels, alpha, latent);
  } catch (const Error& e) {
    if (e.code() != Code::input) throw;
    return set(small, State::damaged, cat("its auxiliary data is damaged: ", e.what()));
  }
  if (!matches(auxiliary_digest(alpha, latent), small.auxiliary_digest)) {
    if (m.layout == "alpha") small.unverified_alpha = stored_alpha(pixels);
    return set(small, State::auxiliary_stripped,
               alpha.empty() ? "its latent code is missing or changed" : "its alpha plane was changed or dropped");
  }
  small.alpha = std::move(alpha);
  small.latent = std::move(latent);
}

std::string sidecar_path(const std::string& path) { return path + ".rescale"; }

}  // namespace

void detail::check_planes(const LrPicture& small) {
  const auto width = static_cast<std::size_t>(std::max(0, small.size.width)),
             height = static_cast<std::size_t>(std::max(0, small.size.height));
  const std::size_t stride = kLatentStride, latent = ceil_div(width, stride) * ceil_div(height, stride) * kLatentChannels;
  const auto fits = [](const Bytes& plane, std::size_t wanted) { return plane.empty() || plane.size() == wanted; };
  if (width == 0 || small.rgb.size() != width * height * 3 || !fits(small.alpha, width * height) ||
      !fits(small.unverified_alpha, width * height) || !fits(small.latent, latent)) {
    fail(Code::input, small.name, ": its planes are not of its size, ", by(width, height));
  }
  const std::string why = small.has_marker ? contradiction(small.marker) : "";
  if (!why.empty()) fail(Code::input, small.name, ": its marker says ", why);
  check_colour(small.colour, small.name);
}

bool detail::fits(const Marker& marker, Size size) {
  return size.width >= 0 && size.height >= 0 && marker.lr_width == static_cast<std::uint64_t>(size.width) &&
         marker.lr_height == static_cast<std::uint64_t>(size.height);
}

const char* to_string(State state) { return kStates[static_cast<int>(state)]; }

namespace {

LrPicture read_png(const Bytes& file, const std::string& name, std::uint64_t max_pixels, const Bytes* sidecar) {
  if (file.empty()) damaged(name, ": empty");
  if (!is_png(file)) fail(Code::input, name, ": not a PNG file, the one container that the C++ library reads");
  const std::vector<Chunk> chunks = read_chunks(file, name);
  const Pixels pixels = decode_pixels(chunks, name, max_pixels);
  Carried carried = find_block(chunks);
  LrPicture small;
  small.name = name;
  small.size = {pixels.width, pixels.height};
  small.rgb = colours(pixels);
  small.colour = colour_from_png(chunks, name);
  if (sidecar) carried.copies.push_back(*sidecar);
  std::string newer;
  for (const Bytes& copy : carried.copies) {
    try {
      judge(small, decode_block(copy), pixels, max_pixels);
      return small;
    } catch (const NewerFormat& e) {
      newer = e.why;
    } catch (const DamagedBlock& e) {
      carried.faults.push_back(e.why);
    }
  }
  if (!newer.empty()) {
    set(small, State::newer_format, newer);
  } else if (!carried.faults.empty()) {
    set(small, State::damaged, cat("its marker is damaged: ", carried.faults.front()));
  } else {
    set(small, State::foreign, "it carries no marker of this toolkit");
    small.unverified_alpha = stored_alpha(pixels);
  }
  return small;
}

}  // namespace

LrPicture LrPicture::from_png(const Bytes& file, const std::string& name, std::uint64_t max_pixels, const Bytes* sidecar) {
  return translated([&] { return read_png(file, name, max_pixels, sidecar); });
}

LrPicture LrPicture::open(const std::string& path, std::uint64_t max_pixels) {
  return translated([&] {
    const Bytes file = read_file(path);
    LrPicture small = read_png(file, path, max_pixels, nullptr);
    if (small.has_marker || !is_file(sidecar_path(path))) return small;
    try {
      const Bytes sidecar = read_file(sidecar_path(path));
      return read_png(file, path, max_pixels, &sidecar);
    } catch (const Error& e) {
      if (e.code() != Code::input) throw;
      set(small, State::damaged, cat("its side-car cannot be read: ", e.what()));
      return small;
    }
  });
}

LrPicture::File LrPicture::to_png(const std::string& layout, const std::string& carrier) const {
  return translated([&] {
    const auto check = [](const char* option, const std::string& value, std::initializer_list<std::string_view> known) {
      if (std::find(known.begin(), known.end(), value) != known.end()) return;
      std::string names;
      for (const auto& k : known) names += cat(names.empty() ? "" : ", ", k);
      fail(Code::input, option, " '", value, "': choose one of ", names);
    };
    check("layout", layout, {"alpha", "chunk", "strip"});
    check("carrier", carrier, {"chunk", "text", "sidecar"});
    if (!has_marker || state != State::exact) {
      refuse(state, name, ": ", detail, ": an LR file is written from an exact picture only");
    }
    check_planes(*this);
    if (marker.model.size() > kMaxModelName || !is_sha256(marker.weights)) {
      fail(Code::input, name, ": its marker needs a model's name of at most ", kMaxModelName,
           " bytes and the weights' SHA-256 as 64 hexadecimal digits");
    }
    if (!source_alpha.empty() && source_alpha.size() != marker.hr_width * marker.hr_height) {
      fail(Code::input, name, ": its source_alpha is not of the HR picture's size");
    }
    const auto width = static_cast<std::size_t>(size.width), height = static_cast<std::size_t>(size.height);
    Block block = block_of(*this);
    block.marker.layout = alpha.empty() ? "none" : layout;
    Bytes pixels = rgb;
    std::size_t rows = height;
    int channels = 3;
    if (block.marker.layout == "alpha") {
      channels = 4;
      pixels.resize(width * height * 4);
      for (std::size_t i = 0; i < alpha.size(); i++) {
        std::copy_n(&rgb[3 * i], 3, &pixels[4 * i]);
        pixels[4 * i + 3] = kZigzag.store[alpha[i]];
      }
    } else if (block.marker.layout == "strip") {
      pixels = add_strip(rgb, alpha, width, height);
      rows += strip_rows(height);
    } else if (block.marker.layout == "chunk") {
      block.sections.emplace_back("ALPH", encode_plane(alpha, width, height));
    }
    const std::uint64_t stride = kLatentStride;
    if (!latent.empty()) {
      const std::uint64_t rows_of_all = kLatentChannels * ceil_div(height, stride);
      block.sections.emplace_back("LATN", encode_plane(latent, ceil_div(width, stride), rows_of_all));
    }
    if (!source_alpha.empty()) {
      block.sections.emplace_back("SRCA", encode_plane(source_alpha, marker.hr_width, marker.hr_height));
    }
    Chunks added = colour_for_rgb(colour);
    if (added != colour) block.sections.emplace_back("META", pack_colour(colour));
    const Bytes coded = encode_block(block);
    for (auto& chunk : carry(coded, carrier)) added.push_back(std::move(chunk));
    File out{insert_chunks(encode_pixels(pixels.data(), width, rows, channels), added), {}};
    if (carrier == "sidecar") out.sidecar = coded;
    const std::uint64_t most = std::max<std::uint64_t>(width * rows, marker.hr_width * marker.hr_height);
    const LrPicture again = from_png(out.data, name, most, out.sidecar.empty() ? nullptr : &out.sidecar);
    const bool same = again.rgb == rgb && again.alpha == alpha && again.latent == latent && again.source_alpha == source_alpha &&
                      again.colour == colour;
    if (again.state != State::exact || !same) {
      refuse(again.state, name, ": reading back the encoded file gave ", rescale::to_string(again.state), ": ", again.detail);
    }
    return out;
  });
}

void LrPicture::save(const std::string& path, const std::string& layout, const std::string& carrier) const {
  translated([&] {
    const File file = to_png(layout, carrier);
    if (file.sidecar.empty()) {
      write_file(path, file.data);
    } else {
      write_both(sidecar_path(path), file.sidecar, path, file.data);
    }
  });
}

std::pair<State, std::string> LrPicture::verdict(const std::string& model, int scale, const std::string& weights) const {
  return translated([&]() -> std::pair<State, std::string> {
    if (has_marker && (marker.model != model || marker.scale != scale || marker.weights != weights)) {
      const std::string made = cat("made by ", marker.model, " x", marker.scale, " with weights ", marker.weights.substr(0, 12));
      return {State::other_model, message(cat(made, ", not by ", model, " x", scale, " with weights ", weights.substr(0, 12)))};
    }
    if (has_marker && state == State::exact && !fits(marker, size)) {  // not from a file: its planes were exchanged
      const auto width = static_cast<std::uint64_t>(std::max(0, size.width)),
                 height = static_cast<std::uint64_t>(std::max(0, size.height));
      return {State::pixels_changed, resized(width, height, marker.lr_width, marker.lr_height)};
    }
    return {state, detail};
  });
}

}  // namespace rescale
