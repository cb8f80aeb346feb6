// SHA-256 (FIPS 180-4).

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace rescale::detail {

using Digest = std::array<std::uint8_t, 32>;

class Sha256 {
 public:
  void update(const void* data, std::size_t size);
  Digest finish();

 private:
  void block(const std::uint8_t* p);
  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> pending_{};
  std::size_t held_ = 0;
  std::uint64_t total_ = 0;  // bytes
};

Digest sha256(const void* data, std::size_t size);
std::string hexadecimal(const std::uint8_t* data, std::size_t size);
bool is_sha256(const std::string& text);  // a digest as `hexadecimal` writes it

}  // namespace rescale::detail
