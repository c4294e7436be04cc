#pragma once
/// The token streams of a run: the training data, its identity and tokenizer, the validation set.

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "data/dataset.h"
#include "data/loader.h"
#include "model/config.h"
#include "model/weights.h"
#include "trainer/config.h"

namespace rwkv {

struct TrainData {
  std::shared_ptr<const TokenSource> source;
  std::shared_ptr<const Tokenizer> tokenizer;  ///< null for synthetic data
  TokenizerBlob blob;                          ///< the same for checkpoints; empty without one
  /// SHA-256 over size, vocabulary, tokenizer and 64 windows of 1024 tokens spread over the stream:
  /// enough to notice another file without reading all of a large one.
  std::string hash;
};

/// The token file or binidx data `path`, or random tokens for "synthetic" (seeded, 2^24 of them or
/// what one batch needs). Throws IoError for files that are missing or damaged, ConfigError if
/// ids do not fit the model.
TrainData open_train_data(const std::string& path, const TrainConfig& config);
/// Whether there is a file that `open_train_data` would open.
bool train_data_exists(const std::string& path);

/// The order of config.data for this data. Throws ConfigError.
std::unique_ptr<Sampler> train_sampler(const TrainData& data, const TrainConfig& config);
/// Batches of config.train in the order of config.data.sampler, from sample `position` on: those of
/// rank `rank` of config.ranks.
std::unique_ptr<BatchLoader> make_loader(const TrainData& data, const TrainConfig& config,
                                         int64_t position, int rank = 0);

/// A fixed set of windows of T tokens, evenly spread over a stream: always the same ones, so that
/// validation losses can be compared. If the stream has fewer than asked for, all of them (a
/// stream with less than one batch repeats itself).
class ValidationSet {
 public:
  /// Throws ConfigError if the stream is shorter than one window.
  ValidationSet(std::shared_ptr<const TokenSource> source, int64_t batch, int64_t tokens,
                int64_t batches);
  int64_t batches() const { return batches_; }
  /// Fills (batch, tokens) ids and their targets. Allocates nothing.
  void fill(int64_t index, std::span<int32_t> tokens, std::span<int32_t> targets);

 private:
  std::shared_ptr<const TokenSource> source_;
  int64_t batch_, tokens_, batches_, windows_;
  std::vector<int32_t> row_;
};

}  // namespace rwkv
