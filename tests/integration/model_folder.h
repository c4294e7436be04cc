#pragma once
/// For tests of programs that read models: a folder of small model files, and what a program left.

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "kernels/core/error.h"
#include "tests/unit/model_files.h"

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
    write_hdf5_model(path("alphabet.h5"), bigram_model(alphabet));
    write_hdf5_model(path("random.h5"), random_model(30, 2, 128, 257));
    write_hdf5_model(path("rwkv4.h5"), random_rwkv4(30, 2, 128, 257));
    write_hdf5_model(path("no_tokenizer.h5"), random_model(31, 2, 64, 100), false);
    write_hdf5_model(path("small_rows.h5"), random_model(31, 2, 64, 100));
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(dir_); }

  static std::string path(const std::string& name) { return (dir_ / name).string(); }

  static inline std::filesystem::path dir_;
};

}  // namespace rwkv::test
