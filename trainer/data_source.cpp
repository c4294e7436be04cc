#include "trainer/data_source.h"

#include <algorithm>
#include <string_view>

#include "data/io/sha256.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

constexpr int64_t kHashWindows = 64, kHashTokens = 1024;

std::string identity(const TokenSource& source, std::string_view tokenizer_hash) {
  Sha256 sha;
  sha.update(str("tokens ", source.size(), " vocabulary ", source.vocab_size(), " tokenizer ",
                 tokenizer_hash, "\n"));
  const int64_t n = std::min(source.size(), kHashTokens);
  std::vector<int32_t> window(static_cast<size_t>(n));
  for (int64_t i = 0; i < kHashWindows; ++i) {
    source.read((source.size() - n) * i / (kHashWindows - 1), window);
    sha.update({reinterpret_cast<const char*>(window.data()), window.size() * sizeof(int32_t)});
  }
  return sha.hex();
}

}  // namespace

TrainData open_train_data(const std::string& path, const TrainConfig& config) {
  TrainData data;
  RWKV_CHECK(!path.empty(), ConfigError, "opening the training data: data.train is empty; set it ",
             "to a token file (rwkv-data tokenize makes one) or to \"synthetic\"");
  if (path == "synthetic") {
    const int64_t least = config.tokens_per_step() * 2;
    data.source = std::make_shared<RandomTokens>(std::max<int64_t>(int64_t{1} << 24, least),
                                                 static_cast<int32_t>(config.model.vocab_size),
                                                 static_cast<uint64_t>(config.train.seed));
    data.hash = identity(*data.source, "");
    return data;
  }
  const auto file = TokenFile::open(path);
  RWKV_CHECK(file->vocab_size() <= config.model.vocab_size, ConfigError, "opening ", path,
             ": its tokenizer (", file->tokenizer_name(), ") has ", file->vocab_size(),
             " ids, but model.vocab_size is ", config.model.vocab_size);
  data.source = file;
  data.tokenizer = file->tokenizer();
  const std::string_view vocabulary = data.tokenizer->vocabulary();
  data.blob.name = std::string(data.tokenizer->name());
  data.blob.hash = data.tokenizer->hash();
  data.blob.blob.assign(vocabulary.begin(), vocabulary.end());
  data.hash = identity(*data.source, data.tokenizer->hash());
  return data;
}

std::unique_ptr<BatchLoader> make_loader(const TrainData& data, const TrainConfig& config,
                                         int64_t position) {
  std::shared_ptr<const Sampler> sampler =
      make_sampler(config.data.sampler, data.source->size(), config.train.context,
                   static_cast<uint64_t>(config.train.seed));
  LoaderOptions o;
  o.rows = config.train.batch;
  o.length = config.train.context;
  o.position = static_cast<uint64_t>(position);
  return std::make_unique<BatchLoader>(data.source, std::move(sampler), o);
}

ValidationSet::ValidationSet(std::shared_ptr<const TokenSource> source, int64_t batch,
                             int64_t tokens, int64_t batches)
    : source_(std::move(source)),
      batch_(batch),
      tokens_(tokens),
      batches_(batches),
      windows_((source_->size() - 1) / tokens),
      row_(static_cast<size_t>(tokens) + 1) {
  RWKV_CHECK(windows_ > 0, ConfigError, "validating on ", source_->describe(), ": it has ",
             source_->size(), " tokens, one window of train.context ", tokens, " needs ",
             tokens + 1);
  batches_ = std::clamp<int64_t>(windows_ / batch, 1, batches);
}

void ValidationSet::fill(int64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) {
  const int64_t used = std::min(windows_, batches_ * batch_);
  for (int64_t b = 0; b < batch_; ++b) {
    const int64_t i = (index * batch_ + b) % used;
    source_->read(windows_ * i / used * tokens_, row_);
    std::copy(row_.begin(), row_.end() - 1, tokens.begin() + b * tokens_);
    std::copy(row_.begin() + 1, row_.end(), targets.begin() + b * tokens_);
  }
}

}  // namespace rwkv
