#include "data/loader.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace rwkv {

BatchLoader::BatchLoader(std::shared_ptr<const TokenSource> source,
                         std::shared_ptr<const Sampler> sampler, const LoaderOptions& options)
    : source_(std::move(source)),
      sampler_(std::move(sampler)),
      options_(options),
      position_(options.position) {
  RWKV_CHECK(options.rows > 0 && options.length > 0 && options.prefetch > 0, ConfigError,
             "loading batches: batch size ", options.rows, ", length ", options.length,
             " and prefetch ", options.prefetch, " must be positive");
  RWKV_CHECK(options.world > 0 && options.rank >= 0 && options.rank < options.world, ConfigError,
             "loading batches: rank ", options.rank, " of ", options.world);
  RWKV_CHECK(source_->size() > options.length, ConfigError, "loading batches from ",
             source_->describe(), ": ", source_->size(), " tokens, samples of length ",
             options.length, " need ", options.length + 1);
  const auto n = static_cast<size_t>(options.rows * options.length);
  // One more than is kept ready: the batch that the caller is working on.
  ring_.resize(static_cast<size_t>(options.prefetch) + 1);
  for (Batch& b : ring_) {
    b.rows = options.rows;
    b.length = options.length;
    b.x.resize(n);
    b.y.resize(n);
  }
  thread_ = std::thread([this] { run(); });
}

BatchLoader::~BatchLoader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void BatchLoader::fill(Batch& batch, uint64_t first, std::vector<int32_t>& row) const {
  const auto length = static_cast<size_t>(options_.length);
  const auto world = static_cast<uint64_t>(options_.world);
  for (size_t b = 0; b < static_cast<size_t>(options_.rows); ++b) {
    const uint64_t sample = first + b * world + static_cast<uint64_t>(options_.rank);
    source_->read(sampler_->offset(sample), row);
    const auto at = static_cast<std::ptrdiff_t>(b * length);
    std::copy(row.begin(), row.end() - 1, batch.x.begin() + at);
    std::copy(row.begin() + 1, row.end(), batch.y.begin() + at);
  }
  batch.position = first + static_cast<uint64_t>(options_.rows) * world;
}

void BatchLoader::run() {
  std::vector<int32_t> row(static_cast<size_t>(options_.length) + 1);
  uint64_t first = options_.position;
  for (uint64_t n = 0;; ++n) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || n - taken_ < ring_.size(); });
      if (stop_) return;
    }
    Batch& batch = ring_[n % ring_.size()];
    std::exception_ptr error;
    try {
      fill(batch, first, row);
      first = batch.position;
    } catch (...) {
      error = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      if (error != nullptr)
        error_ = error;
      else
        filled_ = n + 1;
    }
    changed_.notify_all();
    if (error != nullptr) return;
  }
}

const Batch& BatchLoader::next() {
  std::unique_lock lock(mutex_);
  if (holding_) {
    ++taken_;  // the batch returned last goes back to the thread
    holding_ = false;
    changed_.notify_all();
  }
  changed_.wait(lock, [&] { return filled_ > taken_ || error_ != nullptr; });
  if (filled_ <= taken_) std::rethrow_exception(error_);
  holding_ = true;
  const Batch& batch = ring_[taken_ % ring_.size()];
  position_ = batch.position;
  return batch;
}

}  // namespace rwkv
