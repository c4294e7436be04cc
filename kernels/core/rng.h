#pragma once
/// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
/// easy as 1, 2, 3", and its known-answer vectors). A draw is a pure function of
/// (seed, purpose, step, index): there is no state to save, and every rank sees the same numbers.

#include <array>
#include <cstdint>
#include <string_view>

namespace rwkv {

/// One Philox4x32-10 block: counter and key in, four random words out.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// FNV-1a of a string, used to turn names into purposes.
constexpr uint64_t hash_name(std::string_view name) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return h;
}

/// A stream of draws for one (seed, purpose, step). Copyable; `index` addresses draws at random.
class Rng {
 public:
  /// purpose: any 64-bit number, usually hash_name("what this is for"); step < 2^32.
  Rng(uint64_t seed, uint64_t purpose, uint64_t step = 0);

  uint64_t u64(uint64_t index) const;                ///< uniform over all 64-bit numbers
  double uniform(uint64_t index) const;              ///< [0, 1), 53 bits
  uint64_t below(uint64_t index, uint64_t n) const;  ///< [0, n), unbiased; n >= 1
  double normal(uint64_t index) const;               ///< N(0, 1), Box-Muller in double

  /// Sequential draws: the same numbers as index 0, 1, 2, ...
  uint64_t next_u64() { return u64(next_++); }
  double next_uniform() { return uniform(next_++); }
  uint64_t next_below(uint64_t n) { return below(next_++, n); }
  double next_normal() { return normal(next_++); }

 private:
  std::array<uint32_t, 4> block(uint64_t index, uint32_t lane) const;
  std::array<uint32_t, 2> key_;
  uint32_t step_;
  uint64_t next_ = 0;
};

}  // namespace rwkv
