#pragma once
/// For tests of programs that read models: a folder of small model files, and what a program left.

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "data/io/hdf5_file.h"
#include "data/tokenizer/tokenizer.h"
#include "model/weights.h"
#include "tests/unit/inference_model.h"

namespace rwkv::test {

struct Output {
  int code = -1;
  std::string out, err;
};

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// One folder for all tests of a suite.
class ModelFolder : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = std::filesystem::temp_directory_path() /
           str("greylag-models-", static_cast<long>(getpid()));
    std::filesystem::create_directories(dir_);
    write("alphabet.h5", bigram_model(alphabet), true);
    write("random.h5", random_model(30, 2, 128, 257), true);
    write("rwkv4.h5", random_rwkv4(30, 2, 128, 257), true);
    write("no_tokenizer.h5", random_model(31, 2, 64, 100), false);
    write("small_rows.h5", random_model(31, 2, 64, 100), true);
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(dir_); }

  /// With the name and hash of the tokenizer of bytes, or without one.
  static void write(const std::string& name, const TestModel& m, bool tokenizer) {
    TokenizerBlob blob;
    if (tokenizer) blob = {.name = "bytes", .hash = ByteTokenizer().hash()};
    Hdf5File file = Hdf5File::create(path(name));
    write_model(file, m.model->config(), m.model->params(), *m.weights, blob);
    file.close();
  }
  static std::string path(const std::string& name) { return (dir_ / name).string(); }

  static inline std::filesystem::path dir_;
};

}  // namespace rwkv::test
