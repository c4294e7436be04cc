#include "kernels/core/rng.h"

#include <cmath>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

/// Finaliser of splitmix64: spreads seed and purpose over all bits of the key.
uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c;
}

Rng::Rng(uint64_t seed, uint64_t purpose, uint64_t step) : step_(static_cast<uint32_t>(step)) {
  RWKV_ASSERT(step < (uint64_t{1} << 32));
  const uint64_t key = mix64(mix64(seed + 0x9e3779b97f4a7c15ull) + purpose);
  key_ = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

std::array<uint32_t, 4> Rng::block(uint64_t index, uint32_t lane) const {
  return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), step_, lane},
                    key_);
}

uint64_t Rng::u64(uint64_t index) const {
  const auto b = block(index, 0);
  return (uint64_t{b[1]} << 32) | b[0];
}

double Rng::uniform(uint64_t index) const {
  return static_cast<double>(u64(index) >> 11) * 0x1.0p-53;
}

uint64_t Rng::below(uint64_t index, uint64_t n) const {
  RWKV_ASSERT(n >= 1);
  // Multiply-shift with rejection (Lemire 2019): exact, and rejections are rare.
  const uint64_t threshold = (0 - n) % n;
  for (uint32_t lane = 0;; ++lane) {
    const auto b = block(index, lane);
    const uint64_t x = (uint64_t{b[1]} << 32) | b[0];
    const auto product = static_cast<unsigned __int128>(x) * n;
    if (static_cast<uint64_t>(product) >= threshold) return static_cast<uint64_t>(product >> 64);
  }
}

double Rng::normal(uint64_t index) const {
  const auto b = block(index, 0);
  const uint64_t hi = (uint64_t{b[1]} << 32) | b[0];
  const uint64_t lo = (uint64_t{b[3]} << 32) | b[2];
  const double u = (static_cast<double>(hi >> 11) + 1.0) * 0x1.0p-53;  // (0, 1]
  const double v = static_cast<double>(lo >> 11) * 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586476925 * v);
}

}  // namespace rwkv
