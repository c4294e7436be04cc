#include "data/sampler.h"

#include <bit>
#include <cmath>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"

namespace rwkv {
namespace {

uint64_t mul_mod(uint64_t a, uint64_t b, uint64_t m) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b % m);
}

uint64_t pow_mod(uint64_t base, uint64_t exponent, uint64_t m) {
  uint64_t result = 1;
  for (base %= m; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result = mul_mod(result, base, m);
    base = mul_mod(base, base, m);
  }
  return result;
}

/// Miller-Rabin; the first twelve primes as bases decide every number below 2^64
/// (Sorenson and Webster 2015).
bool is_prime(uint64_t n) {
  static constexpr uint64_t kBases[] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};
  if (n < 2) return false;
  for (const uint64_t p : kBases)
    if (n % p == 0) return n == p;
  const int twos = std::countr_zero(n - 1);
  for (const uint64_t base : kBases) {
    uint64_t x = pow_mod(base, (n - 1) >> twos, n);
    if (x == 1 || x == n - 1) continue;
    bool composite = true;
    for (int i = 1; i < twos && composite; ++i) {
      x = mul_mod(x, x, n);
      composite = x != n - 1;
    }
    if (composite) return false;
  }
  return true;
}

int64_t count_slots(int64_t tokens, int64_t length) {
  RWKV_CHECK(length > 0, ConfigError, "the context length must be positive, got ", length);
  RWKV_CHECK(tokens > length, ConfigError, "the data has ", tokens, " tokens; samples of length ",
             length, " need at least ", length + 1, ". Use a shorter context or more data");
  return (tokens - 1) / length;
}

}  // namespace

int64_t magic_prime(int64_t tokens, int64_t length) {
  RWKV_CHECK(length > 0, ConfigError, "the context length must be positive, got ", length);
  for (int64_t p = tokens / length - 1; p >= 2; --p)
    if (p % 3 == 2 && is_prime(static_cast<uint64_t>(p))) return p;
  return 0;
}

SequentialSampler::SequentialSampler(int64_t tokens, int64_t length)
    : length_(length), slots_(count_slots(tokens, length)) {}

int64_t SequentialSampler::offset(uint64_t index) const {
  return static_cast<int64_t>(index % static_cast<uint64_t>(slots_)) * length_;
}

PrimeSampler::PrimeSampler(int64_t tokens, int64_t length, int64_t prime)
    : length_(length), prime_(magic_prime(tokens, length)) {
  const int64_t slots = tokens / length;
  if (prime != 0 && prime != prime_) {
    const bool is_one = prime > 0 && is_prime(static_cast<uint64_t>(prime)) && prime % 3 == 2;
    // The last sample reads one token more than its slot has.
    const bool fits = static_cast<double>(prime) > 0.9 * static_cast<double>(slots) &&
                      prime <= (tokens - 1) / length;
    RWKV_CHECK(is_one && fits, ConfigError, "magic prime ", prime, ": ",
               is_one ? str("not within 90 to 100 % of the ", slots, " samples that ", tokens,
                            " tokens make at context ", length)
                      : str("no prime that leaves 2 when divided by 3"),
               "; for this data and context it is ", prime_,
               ". Set that, or leave it out to have it computed");
    prime_ = prime;
  }
  RWKV_CHECK(prime_ > 0 && static_cast<double>(prime_) > 0.9 * static_cast<double>(slots),
             ConfigError, "prime-cube data order: ", tokens, " tokens make ", slots,
             " samples of length ", length, ", and the largest usable prime is ", prime_,
             ", not above 90 % of that. Use the shuffle sampler, a shorter context or more data");
  factor_ = static_cast<int64_t>(static_cast<double>(prime_) * (std::sqrt(5.0) - 1) / 2);
}

int64_t PrimeSampler::offset(uint64_t index) const {
  const auto p = static_cast<uint64_t>(prime_);
  const uint64_t i = (index + 1) % p;
  const uint64_t cube = mul_mod(mul_mod(i, i, p), i, p);
  return static_cast<int64_t>(mul_mod(static_cast<uint64_t>(factor_), cube, p)) * length_;
}

ShuffleSampler::ShuffleSampler(int64_t tokens, int64_t length, uint64_t seed)
    : length_(length), slots_(count_slots(tokens, length)), seed_(seed) {
  const int bits = std::bit_width(static_cast<uint64_t>(slots_ - 1));
  half_bits_ = bits < 2 ? 1 : (bits + 1) / 2;
}

uint64_t ShuffleSampler::encrypt(uint64_t value, uint64_t epoch) const {
  static constexpr uint64_t kPurpose = hash_name("shuffle sampler");
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_, right = value & mask;
  // Luby and Rackoff need 4 rounds for a strong permutation; small halves profit from a few more.
  for (uint64_t round = 0; round < 8; ++round) {
    // Key and function in one: a Philox draw indexed by (epoch, round, half).
    const Rng rng(seed_ ^ (epoch * 0x9E3779B97F4A7C15ull), kPurpose, round);
    const uint64_t mixed = left ^ (rng.u64(right) & mask);
    left = right;
    right = mixed;
  }
  return left << half_bits_ | right;
}

int64_t ShuffleSampler::offset(uint64_t index) const {
  const auto slots = static_cast<uint64_t>(slots_);
  const uint64_t epoch = index / slots;
  uint64_t slot = index % slots;
  do slot = encrypt(slot, epoch);
  while (slot >= slots);
  return static_cast<int64_t>(slot) * length_;
}

std::unique_ptr<Sampler> make_sampler(std::string_view name, int64_t tokens, int64_t length,
                                      uint64_t seed, int64_t prime) {
  RWKV_CHECK(prime == 0 || name == "prime", ConfigError, "magic prime ", prime,
             " was given for the sampler \"", name, "\"; it is for the sampler \"prime\" only");
  if (name == "sequential") return std::make_unique<SequentialSampler>(tokens, length);
  if (name == "prime") return std::make_unique<PrimeSampler>(tokens, length, prime);
  if (name == "shuffle") return std::make_unique<ShuffleSampler>(tokens, length, seed);
  throw ConfigError(str("unknown sampler \"", name, "\"; known are sequential, prime, shuffle"));
}

}  // namespace rwkv
