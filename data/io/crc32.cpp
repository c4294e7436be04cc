#include "data/io/crc32.h"

#include <array>
#include <bit>
#include <cstring>

namespace rwkv {
namespace {

static_assert(std::endian::native == std::endian::little, "file formats here are little-endian");

constexpr int kSlices = 16;
using Tables = std::array<std::array<uint32_t, 256>, kSlices>;

constexpr std::array<uint32_t, 256> byte_table(uint32_t polynomial) {
  std::array<uint32_t, 256> t{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t c = b;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (polynomial & (0u - (c & 1u)));
    t[b] = c;
  }
  return t;
}
constexpr std::array<uint32_t, 256> kCastagnoli = byte_table(0x82F63B78u);

// table[s][b]: what byte b contributes when s more bytes follow it.
constexpr Tables make_tables() {
  Tables t{};
  t[0] = byte_table(0xEDB88320u);
  for (size_t s = 1; s < kSlices; ++s)
    for (size_t b = 0; b < 256; ++b) t[s][b] = (t[s - 1][b] >> 8) ^ t[0][t[s - 1][b] & 0xFFu];
  return t;
}
constexpr Tables kTables = make_tables();

uint32_t four(uint32_t word, size_t slice) {
  return kTables[slice + 3][word & 0xFF] ^ kTables[slice + 2][(word >> 8) & 0xFF] ^
         kTables[slice + 1][(word >> 16) & 0xFF] ^ kTables[slice][word >> 24];
}

}  // namespace

uint32_t crc32(std::span<const std::byte> data, uint32_t crc) {
  const std::byte* p = data.data();
  size_t n = data.size();
  uint32_t c = ~crc;
  while (n >= kSlices) {
    uint32_t w[4];
    std::memcpy(w, p, sizeof w);
    c = four(w[0] ^ c, 12) ^ four(w[1], 8) ^ four(w[2], 4) ^ four(w[3], 0);
    p += kSlices;
    n -= kSlices;
  }
  for (; n > 0; --n, ++p) c = (c >> 8) ^ kTables[0][(c ^ static_cast<uint32_t>(*p)) & 0xFF];
  return ~c;
}

uint32_t crc32c(std::span<const std::byte> data) {
  uint32_t c = ~uint32_t{0};
  for (const std::byte b : data) c = (c >> 8) ^ kCastagnoli[(c ^ static_cast<uint32_t>(b)) & 0xFF];
  return ~c;
}

}  // namespace rwkv
