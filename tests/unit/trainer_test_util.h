#pragma once
/// What the trainer's tests share: scratch folders, small configs, token files, file contents.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "kernels/core/rng.h"
#include "trainer/config.h"

namespace rwkv::test {

namespace fs = std::filesystem;

/// A folder that is removed at the end.
class ScratchDir {
 public:
  explicit ScratchDir(const std::string& name)
      : path_(fs::temp_directory_path() / (name + "." + std::to_string(getpid()))) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~ScratchDir() {
    std::error_code ec;
    fs::remove_all(path_, ec);
  }
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string str() const { return path_.string(); }

 private:
  fs::path path_;
};

inline std::string file_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::stringstream s;
  s << in.rdbuf();
  return s.str();
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << bytes;
}

/// A byte-level token file of easy text: cycles of a few words, with random jumps.
inline void write_token_file(const std::string& path, int64_t tokens, uint64_t seed) {
  const std::vector<std::string> words = {"red ", "green ", "blue ", "one ", "two ", "three "};
  auto tokenizer = std::make_shared<const ByteTokenizer>();
  TokenFileWriter writer(path, tokenizer, "{}");
  Rng rng(seed, hash_name("test text"));
  std::string text;
  size_t w = 0;
  while (static_cast<int64_t>(text.size()) < tokens) {
    w = rng.next_below(8) == 0 ? rng.next_below(words.size()) : (w + 1) % words.size();
    text += words[w];
  }
  text.resize(static_cast<size_t>(tokens));
  writer.add_document(tokenizer->encode(text));
  writer.finish();
}

/// A model of a few ten thousand parameters on the files that `write_token_file` made.
inline TrainConfig small_config(const std::string& train, const std::string& run_dir,
                                std::vector<std::string> settings = {}) {
  const std::vector<std::string> base = {"data.train=\"" + train + "\"",
                                         "data.sampler=shuffle",
                                         "train.context=32",
                                         "train.batch=2",
                                         "train.steps=40",
                                         "optimizer.lr=2e-3",
                                         "optimizer.lr_final=2e-4",
                                         "optimizer.warmup=5",
                                         "checkpoint.dir=\"" + run_dir + "\"",
                                         "limits.peak_tflops=1"};
  settings.insert(settings.begin(), base.begin(), base.end());
  return parse_config(
      R"({"model": {"n_layer": 2, "n_embd": 64, "vocab_size": 257, "head_size": 32}})",
      "small.json", settings);
}

}  // namespace rwkv::test
