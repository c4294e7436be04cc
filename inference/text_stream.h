#pragma once
/// From generated tokens to text that may be shown: stop strings and whole characters.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/utf8.h"

namespace rwkv {

/// Finds the first stop string in a stream of bytes and holds back what may become one. Where the
/// stream is cut into pieces makes no difference: the stop string that is complete first counts,
/// and the longest of those that are complete at the same byte.
class StopFinder {
 public:
  /// Throws ConfigError if a stop string is empty.
  explicit StopFinder(std::vector<std::string> stops);

  /// Bytes that are certain not to belong to a stop string. Empty once found() is true.
  std::string push(std::string_view bytes);
  /// What was held back in vain; empty if a stop string was found.
  std::string finish();
  bool found() const { return found_; }
  bool holding() const {
    return !held_.empty();
  }  ///< the end may be the beginning of a stop string
  const std::string& stop() const { return stop_; }  ///< the one that was found

 private:
  std::vector<std::string> stops_;  ///< longest first
  std::string held_, stop_;
  bool found_ = false;
};

/// The text of one sequence while it is generated. Every piece is valid UTF-8.
class TextStream {
 public:
  /// The tokenizer must outlive the stream.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops)
      : tokenizer_(tokenizer), stop_(std::move(stops)) {}

  /// Text that this token makes certain; often empty.
  std::string push(int32_t id);
  /// The rest. Call it once, at the end, also after a stop string.
  std::string finish();
  bool stopped() const { return stop_.found(); }
  const std::string& stop() const { return stop_.stop(); }  ///< the string that was found
  bool holding() const { return stop_.holding(); }  ///< the next text may complete a stop string

 private:
  const Tokenizer& tokenizer_;
  StopFinder stop_;
  Utf8Stream utf8_;
};

}  // namespace rwkv
