#pragma once
/// Lists of token ids as text: what `rwkv-data encode` writes, `decode` and other programs read.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

/// "[33155, 40213, 34]": a JSON array.
std::string format_ids(std::span<const int32_t> ids);

/// A JSON array of ids, or ids separated by blanks or commas. Throws IoError for anything else and
/// for ids outside of 0 to vocab_size - 1, beginning with `where`.
std::vector<int32_t> parse_ids(std::string_view text, int32_t vocab_size, std::string_view where);

}  // namespace rwkv
