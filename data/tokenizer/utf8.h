#pragma once
/// UTF-8 pieces that tokenizers, the server and the data programs share.

#include <cstdint>
#include <string>
#include <string_view>

namespace rwkv {

/// Appends a code point. False, and nothing appended, for surrogates and values above U+10FFFF.
bool append_utf8(uint32_t code_point, std::string& out);

/// Turns a stream of arbitrary bytes into valid UTF-8. Invalid parts become U+FFFD, one per maximal
/// ill-formed subsequence (Unicode 15, section 3.9). A sequence that is cut at the end of a piece
/// (at most 3 bytes) is held back until later bytes complete or break it.
class Utf8Stream {
 public:
  /// Text that is certain now.
  std::string push(std::string_view bytes);
  /// The rest: U+FFFD if a sequence was left incomplete. The stream can be used again.
  std::string finish();

 private:
  std::string held_;
};

/// Whether all of it is UTF-8.
bool is_valid_utf8(std::string_view bytes);

/// The whole at once.
std::string to_valid_utf8(std::string_view bytes);

}  // namespace rwkv
