#pragma once
/// Which tokens the n-th training sample consists of.
///
/// A sampler is a pure function from the number of a sample to a token offset. Samples are numbered
/// over all ranks: rank r of W takes the numbers k * W + r, k = 0, 1, ...  The state of a run is
/// the number of samples consumed so far, so resuming is exact, also with another number of ranks.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace rwkv {

class Sampler {
 public:
  virtual ~Sampler() = default;
  /// "sequential", "prime" or "shuffle"
  virtual std::string_view name() const = 0;
  /// Samples until every slot was visited once.
  virtual int64_t samples_per_epoch() const = 0;
  /// First token of sample `index`; the sample is tokens [offset, offset + length], one more than
  /// its length, because targets are shifted by one.
  virtual int64_t offset(uint64_t index) const = 0;
};

/// The largest prime p with p mod 3 = 2 and p < floor(tokens / length): slots of the reference's
/// data order. 0 if there is none.
int64_t magic_prime(int64_t tokens, int64_t length);

/// Consecutive samples from the start, again and again.
class SequentialSampler final : public Sampler {
 public:
  /// Throws ConfigError if there are fewer than length + 1 tokens.
  SequentialSampler(int64_t tokens, int64_t length);
  std::string_view name() const override { return "sequential"; }
  int64_t samples_per_epoch() const override { return slots_; }
  int64_t offset(uint64_t index) const override;

 private:
  int64_t length_, slots_;
};

/// The order of the reference trainer: slot = (floor(p (sqrt 5 - 1) / 2) (index + 1)^3) mod p with
/// the magic prime p. Since p mod 3 = 2, cubing permutes the slots: each is visited once per p
/// samples. Does not depend on a seed.
/// source: spec/rwkv7.md 6.3
class PrimeSampler final : public Sampler {
 public:
  /// `prime` 0: the magic prime. Another one has to pass the reference's checks: prime, 2 modulo 3,
  /// above 0.9 of the slots (with few tokens even the magic prime is not) and not above them.
  /// Throws ConfigError, naming the magic prime.
  PrimeSampler(int64_t tokens, int64_t length, int64_t prime = 0);
  std::string_view name() const override { return "prime"; }
  int64_t samples_per_epoch() const override { return prime_; }
  int64_t offset(uint64_t index) const override;
  int64_t prime() const { return prime_; }
  int64_t factor() const { return factor_; }

 private:
  int64_t length_, prime_, factor_;
};

/// A permutation of the slots, another one in every epoch, without storing it: a Feistel network
/// over the smallest even number of bits that covers the slots; values outside are sent through
/// again (cycle walking; Black and Rogaway 2002).
class ShuffleSampler final : public Sampler {
 public:
  ShuffleSampler(int64_t tokens, int64_t length, uint64_t seed);
  std::string_view name() const override { return "shuffle"; }
  int64_t samples_per_epoch() const override { return slots_; }
  int64_t offset(uint64_t index) const override;

 private:
  uint64_t encrypt(uint64_t value, uint64_t epoch) const;
  int64_t length_, slots_;
  uint64_t seed_;
  int half_bits_;
};

/// By name; `prime` is for the sampler "prime" only. Throws ConfigError for unknown names and too
/// few tokens.
std::unique_ptr<Sampler> make_sampler(std::string_view name, int64_t tokens, int64_t length,
                                      uint64_t seed, int64_t prime = 0);

}  // namespace rwkv
