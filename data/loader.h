#pragma once
/// Batches that are ready when the trainer asks.

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "data/dataset.h"
#include "data/sampler.h"

namespace rwkv {

struct Batch {
  int64_t rows = 0, length = 0;
  std::vector<int32_t> x;  ///< (rows, length)
  std::vector<int32_t> y;  ///< (rows, length): x shifted by one, y[b, t] follows x[b, t]
  uint64_t position = 0;   ///< samples consumed by all ranks once this batch is used
};

struct LoaderOptions {
  int64_t rows = 1;      ///< samples per batch of this rank (micro-batch)
  int64_t length = 512;  ///< tokens per sample, T
  int rank = 0, world = 1;
  uint64_t position = 0;  ///< samples consumed before, by all ranks: where to resume
  int prefetch = 4;       ///< batches kept ready
};

/// Fills batches on a background thread. Row b of the batch at position P is sample
/// P + b * world + rank, and the next batch starts at P + rows * world; so the ranks together walk
/// through the sampler's order without gaps. Allocates only on construction.
class BatchLoader {
 public:
  /// Throws ConfigError for sizes that make no sense.
  BatchLoader(std::shared_ptr<const TokenSource> source, std::shared_ptr<const Sampler> sampler,
              const LoaderOptions& options);
  /// Stops and joins the thread.
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  /// The next batch, waiting for it if need be; valid until the next call. An exception of the
  /// thread (IoError) surfaces here, after the batches that were filled before it.
  const Batch& next();
  /// Samples consumed by all ranks up to and including the last batch that `next` returned.
  uint64_t position() const { return position_; }

 private:
  void run();
  void fill(Batch& batch, uint64_t first, std::vector<int32_t>& row) const;

  std::shared_ptr<const TokenSource> source_;
  std::shared_ptr<const Sampler> sampler_;
  LoaderOptions options_;
  std::vector<Batch> ring_;
  uint64_t filled_ = 0, taken_ = 0;  ///< batches since construction, guarded by mutex_
  uint64_t position_;
  bool holding_ = false, stop_ = false;
  std::exception_ptr error_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;
};

}  // namespace rwkv
