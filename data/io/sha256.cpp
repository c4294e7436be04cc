#include "data/io/sha256.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace rwkv {
namespace {

// Round constants: the first 32 fractional bits of the cube roots of the first 64 primes.
constexpr std::array<uint32_t, 64> make_constants() {
  std::array<uint32_t, 64> k{};
  size_t n = 0;
  for (uint64_t p = 2; n < k.size(); ++p) {
    bool prime = true;
    for (uint64_t d = 2; d * d <= p; ++d) prime = prime && p % d != 0;
    if (!prime) continue;
    // floor(cbrt(p) * 2^32) by bisection on integers: x^3 <= p * 2^96. x < 2^35, as p < 343.
    uint64_t low = 0, high = uint64_t{1} << 35;
    while (high - low > 1) {
      const uint64_t mid = low + (high - low) / 2;
      // x^3 needs 105 bits; compare x^2 with floor(p * 2^96 / x) in 128 bits.
      const unsigned __int128 limit = (static_cast<unsigned __int128>(p) << 96) / mid;
      (static_cast<unsigned __int128>(mid) * mid <= limit ? low : high) = mid;
    }
    k[n++] = static_cast<uint32_t>(low);
  }
  return k;
}
constexpr auto kRound = make_constants();
static_assert(kRound[0] == 0x428a2f98u && kRound[63] == 0xc67178f2u);

}  // namespace

void Sha256::block(const unsigned char* p) {
  std::array<uint32_t, 64> w;
  for (size_t i = 0; i < 16; ++i)
    w[i] = uint32_t{p[4 * i]} << 24 | uint32_t{p[4 * i + 1]} << 16 | uint32_t{p[4 * i + 2]} << 8 |
           uint32_t{p[4 * i + 3]};
  for (size_t i = 16; i < 64; ++i) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3)) + w[i - 7] +
           (std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10));
  }
  std::array<uint32_t, 8> v = h_;
  for (size_t i = 0; i < 64; ++i) {
    const uint32_t a = v[0], e = v[4];
    const uint32_t t1 = v[7] + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                        ((e & v[5]) ^ (~e & v[6])) + kRound[i] + w[i];
    const uint32_t t2 = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) +
                        ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
    v = {t1 + t2, v[0], v[1], v[2], v[3] + t1, v[4], v[5], v[6]};
  }
  for (size_t i = 0; i < 8; ++i) h_[i] += v[i];
}

void Sha256::update(std::string_view bytes) {
  size_t filled = length_ % 64;
  length_ += bytes.size();
  while (!bytes.empty()) {
    const size_t n = std::min(bytes.size(), 64 - filled);
    std::memcpy(pending_.data() + filled, bytes.data(), n);
    bytes.remove_prefix(n);
    filled += n;
    if (filled == 64) {
      block(pending_.data());
      filled = 0;
    }
  }
}

std::string Sha256::hex() const {
  Sha256 last = *this;
  const uint64_t bits = length_ * 8;
  std::string tail(1, '\x80');
  tail.append((119 - length_ % 64) % 64, '\0');
  for (int shift = 56; shift >= 0; shift -= 8) tail += static_cast<char>(bits >> shift);
  last.update(tail);
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const uint32_t word : last.h_)
    for (int shift = 28; shift >= 0; shift -= 4) out += kDigits[(word >> shift) & 15];
  return out;
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 h;
  h.update(bytes);
  return h.hex();
}

}  // namespace rwkv
