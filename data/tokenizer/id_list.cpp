#include "data/tokenizer/id_list.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "kernels/core/error.h"

namespace rwkv {

std::string format_ids(std::span<const int32_t> ids) {
  std::string out = "[";
  std::array<char, 16> digits;
  for (const int32_t id : ids) {
    if (out.size() > 1) out += ", ";
    out.append(digits.data(), std::to_chars(digits.data(), digits.data() + 16, id).ptr);
  }
  return out += "]";
}

std::vector<int32_t> parse_ids(std::string_view text, int32_t vocab_size, std::string_view where) {
  const auto bad = [&](size_t at, auto&&... parts) {
    throw IoError(str(where, ", column ", at + 1, ": ", parts...,
                      "; expected token ids such as [33155, 40213, 34]"));
  };
  constexpr std::string_view kBlank = " \t\r";
  std::vector<int32_t> ids;
  const auto skip = [&](size_t at) {
    return std::min(text.find_first_not_of(kBlank, at), text.size());
  };
  size_t at = skip(0);
  const bool array = at < text.size() && text[at] == '[';
  if (array) at = skip(at + 1);
  bool closed = !array, comma = false;
  while (at < text.size()) {
    if (array && text[at] == ']' && !comma) {
      closed = true;
      at = skip(at + 1);
      if (at < text.size()) bad(at, "text behind the ]");
      break;
    }
    if (array && !ids.empty() && !comma) bad(at, "a comma is missing");
    int64_t id = 0;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), id);
    if (error == std::errc::invalid_argument) bad(at, "found '", text[at], "'");
    if (error != std::errc{} || id < 0 || id >= vocab_size)
      bad(at, "the id ", text.substr(at, static_cast<size_t>(end - (text.data() + at))),
          " is outside of the vocabulary of ", vocab_size);
    ids.push_back(static_cast<int32_t>(id));
    const auto next = static_cast<size_t>(end - text.data());
    at = skip(next);
    comma = at < text.size() && text[at] == ',';
    if (!comma && at == next && at < text.size() && text[at] != ']')
      bad(at, "found '", text[at], "' behind an id");
    if (comma) at = skip(at + 1);
  }
  if (!closed || (array && comma)) bad(text.size(), "the array does not end with ]");
  return ids;
}

}  // namespace rwkv
