#pragma once
/// CRC-32 with the polynomial of zlib, PNG and zip (reflected 0xEDB88320), and CRC-32C.

#include <cstddef>
#include <cstdint>
#include <span>

namespace rwkv {

/// The checksum of `data`. To continue over pieces pass the previous result as `crc`.
/// crc32 of the nine bytes "123456789" is 0xCBF43926. About 2 GB/s.
uint32_t crc32(std::span<const std::byte> data, uint32_t crc = 0);

/// CRC-32C (Castagnoli; reflected 0x82F63B78), as TFRecord files use it, a byte at a time: for
/// short records. That of "123456789" is 0xE3069283.
uint32_t crc32c(std::span<const std::byte> data);

/// The checksum of the bytes of an array (little-endian hosts).
template <class T>
uint32_t crc32_of(std::span<const T> values, uint32_t crc = 0) {
  return crc32(std::as_bytes(values), crc);
}

}  // namespace rwkv
