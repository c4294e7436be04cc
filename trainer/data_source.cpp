#include "trainer/data_source.h"

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "data/binidx.h"
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

void use_tokenizer(TrainData& data, std::shared_ptr<const Tokenizer> tokenizer) {
  const std::string_view vocabulary = tokenizer->vocabulary();
  data.blob.name = std::string(tokenizer->name());
  data.blob.hash = tokenizer->hash();
  data.blob.blob.assign(vocabulary.begin(), vocabulary.end());
  data.tokenizer = std::move(tokenizer);
}

/// binidx data says nothing of its tokenizer: any id that the model has may occur.
TrainData open_binidx(const std::string& path, const TrainConfig& config) {
  TrainData data;
  data.source = BinidxFile::open(path, static_cast<int32_t>(config.model.vocab_size));
  const std::string& wanted = config.data.tokenizer;
  if (!wanted.empty()) {
    const bool name = wanted == "world" || wanted == "neox" || wanted == "bytes";
    auto tokenizer =
        name ? load_tokenizer(wanted, {.beside = path}) : load_tokenizer("auto", {.file = wanted});
    RWKV_CHECK(tokenizer->vocab_size() <= config.model.vocab_size, ConfigError,
               "opening data.tokenizer ", wanted, ": it has ", tokenizer->vocab_size(),
               " ids, but model.vocab_size is ", config.model.vocab_size);
    use_tokenizer(data, std::move(tokenizer));
  }
  data.hash = identity(*data.source, "");
  return data;
}

}  // namespace

bool train_data_exists(const std::string& path) {
  std::error_code ec;
  return std::filesystem::exists(path, ec) ||
         std::filesystem::exists(binidx_prefix(path) + ".idx", ec);
}

TrainData open_train_data(const std::string& path, const TrainConfig& config) {
  TrainData data;
  RWKV_CHECK(!path.empty(), ConfigError, "opening the training data: data.train is empty; set it ",
             "to a token file (rwkv-data tokenize makes one), to binidx data or to \"synthetic\"");
  if (path == "synthetic") {
    const int64_t least = config.tokens_per_step() * 2;
    data.source = std::make_shared<RandomTokens>(std::max<int64_t>(int64_t{1} << 24, least),
                                                 static_cast<int32_t>(config.model.vocab_size),
                                                 static_cast<uint64_t>(config.train.seed));
    data.hash = identity(*data.source, "");
    return data;
  }
  if (is_binidx(path)) return open_binidx(path, config);
  const auto file = TokenFile::open(path);
  RWKV_CHECK(config.data.tokenizer.empty(), ConfigError, "opening ", path, ": data.tokenizer is ",
             config.data.tokenizer, ", but token files carry their own; it is for binidx data");
  RWKV_CHECK(file->vocab_size() <= config.model.vocab_size, ConfigError, "opening ", path,
             ": its tokenizer (", file->tokenizer_name(), ") has ", file->vocab_size(),
             " ids, but model.vocab_size is ", config.model.vocab_size);
  data.source = file;
  use_tokenizer(data, file->tokenizer());
  data.hash = identity(*data.source, data.tokenizer->hash());
  return data;
}

std::unique_ptr<Sampler> train_sampler(const TrainData& data, const TrainConfig& config) {
  return make_sampler(config.data.sampler, data.source->size(), config.train.context,
                      static_cast<uint64_t>(config.train.seed), config.data.magic_prime);
}

std::unique_ptr<BatchLoader> make_loader(const TrainData& data, const TrainConfig& config,
                                         int64_t position, int rank) {
  std::shared_ptr<const Sampler> sampler = train_sampler(data, config);
  LoaderOptions o;
  o.rows = config.train.batch;
  o.length = config.train.context;
  o.position = static_cast<uint64_t>(position);
  o.rank = rank;
  o.world = static_cast<int>(config.ranks);
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
