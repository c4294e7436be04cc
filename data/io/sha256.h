#pragma once
/// SHA-256 (FIPS 180-4), for identifying vocabularies. Not tuned for bulk data: use crc32 there.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace rwkv {

/// Takes data in pieces; `hex` gives the digest of everything so far as 64 lower-case digits.
class Sha256 {
 public:
  void update(std::string_view bytes);
  std::string hex() const;

 private:
  void block(const unsigned char* p);
  std::array<uint32_t, 8> h_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> pending_{};
  uint64_t length_ = 0;
};

std::string sha256_hex(std::string_view bytes);

}  // namespace rwkv
