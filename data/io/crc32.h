#pragma once
/// CRC-32 with the polynomial of zlib, PNG and zip (reflected 0xEDB88320).

#include <cstddef>
#include <cstdint>
#include <span>

namespace rwkv {

/// The checksum of `data`. To continue over pieces pass the previous result as `crc`.
/// crc32 of the nine bytes "123456789" is 0xCBF43926. About 2 GB/s.
uint32_t crc32(std::span<const std::byte> data, uint32_t crc = 0);

/// The checksum of the bytes of an array (little-endian hosts).
template <class T>
uint32_t crc32_of(std::span<const T> values, uint32_t crc = 0) {
  return crc32(std::as_bytes(values), crc);
}

}  // namespace rwkv
