#pragma once
/// A gnuplot that leaves half a picture, as on a full disk.

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/unit/trainer_test_util.h"

namespace rwkv::test {

/// While it lives it comes first on the PATH: it writes four bytes to the output that the first
/// line of its script names, and ends with 0. Its program lies in `dir`/bin.
class HalfGnuplot {
 public:
  explicit HalfGnuplot(const ScratchDir& dir) : path_(std::getenv("PATH")) {
    namespace fs = std::filesystem;
    const fs::path bin = dir / "bin";
    fs::create_directory(bin);
    write_bytes(bin / "gnuplot",
                "#!/bin/sh\nread -r line\nout=${line#*\\'}\nprintf half >\"${out%\\'}\"\n");
    fs::permissions(bin / "gnuplot", fs::perms::owner_all);
    setenv("PATH", (bin.string() + ":" + path_).c_str(), 1);
  }
  ~HalfGnuplot() { setenv("PATH", path_.c_str(), 1); }
  HalfGnuplot(const HalfGnuplot&) = delete;
  HalfGnuplot& operator=(const HalfGnuplot&) = delete;

 private:
  std::string path_;
};

}  // namespace rwkv::test
