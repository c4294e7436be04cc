#pragma once
/// How deep JSON nests and how much it holds, found before a parser builds what a hostile text
/// describes.

#include <cstddef>
#include <string_view>

namespace rwkv {

/// Far more than any file that is read here has.
inline constexpr size_t kMaxJsonDepth = 64;

struct JsonBrackets {
  size_t deepest = 0;  ///< levels of arrays and objects
  size_t all = 0;      ///< arrays and objects
};
/// Those in strings and comments do not count. Texts that are no JSON have some answer; the parser
/// refuses them.
JsonBrackets count_json_brackets(std::string_view json);

/// Whether arrays and objects of `json` nest more than `depth` levels deep. A parsed value is
/// copied, printed and compared by recursion, and a level costs a hundred times the byte that makes
/// it.
bool json_deeper_than(std::string_view json, size_t depth = kMaxJsonDepth);

}  // namespace rwkv
