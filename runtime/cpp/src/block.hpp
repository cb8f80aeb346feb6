// The integrity block of an LR file: what the picture is, whose it is, and digests of all it needs.
// docs/file-format.md has its layout.

#pragma once

#include "common.hpp"
#include "sha256.hpp"

namespace rescale::detail {

// The block's major version is above ours.
struct NewerFormat {
  std::string why;
};

// The block is truncated, contradicts itself or does not match its digest.
struct DamagedBlock {
  std::string why;
};

constexpr std::size_t kMaxModelName = 32;  // bytes

struct Block {
  Marker marker;
  Digest rgb_digest{}, auxiliary_digest{};
  Chunks sections;  // coded bytes by name of four letters

  const Bytes* section(std::string_view name) const {
    for (const auto& s : sections) {
      if (s.first == name) return &s.second;
    }
    return nullptr;
  }
};

// How a marker's sizes contradict each other, in words; empty where they do not.
std::string contradiction(const Marker& marker);

Bytes encode_block(const Block& block);
Block decode_block(const Bytes& data);  // throws NewerFormat, DamagedBlock

}  // namespace rescale::detail
