#pragma once
/// Helpers shared by the tests of data/.

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>

namespace rwkv::test {

/// A fresh folder that disappears with the object.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "rwkv-test-XXXXXX").string();
    const char* made = ::mkdtemp(pattern.data());
    if (made == nullptr) throw std::runtime_error("mkdtemp " + pattern);
    path_ = made;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// The message of the E that `body` throws; a failure if it throws nothing (or something else).
template <class E, class Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const E& e) {
    return e.what();
  }
  ADD_FAILURE() << "no exception";
  return "";
}

/// A made-up vocabulary in the World file's syntax: bytes as ids 1..256, a few words, gaps.
inline std::string tiny_world_vocabulary() {
  std::string text;
  static constexpr char kHex[] = "0123456789abcdef";
  for (int b = 0; b < 256; ++b) {
    const std::string id = std::to_string(b + 1);
    if (b >= 128) {
      text += id + " b'\\x" + kHex[b >> 4] + kHex[b & 15] + "' 1\n";
    } else if (b == '\'') {
      text += id + " \"'\" 1\n";
    } else if (b == '\\') {
      text += id + " '\\\\' 1\n";
    } else if (b == '\n') {
      text += id + " '\\n' 1\n";
    } else if (b < 32 || b == 127) {
      text += id + " '\\x" + kHex[b >> 4] + kHex[b & 15] + "' 1\n";
    } else {
      text += id + " '" + static_cast<char>(b) + "' 1\n";
    }
  }
  text += "257 'th' 2\n260 'the' 3\n261 'there' 5\n262 'thexy' 5\n";
  text += "263 \"a 'quoted'\" 10\n264 '\\x80' 2\n265 b'\\xe4\\xbd' 2\n";
  text += "266 '\\U0001f680' 4\n269 '\xc3\xa9t\\u00e9' 5\n";
  return text;
}

}  // namespace rwkv::test
