#include "data/io/json_depth.h"

#include <algorithm>

namespace rwkv {

JsonBrackets count_json_brackets(std::string_view json) {
  JsonBrackets found;
  size_t now = 0;
  bool text = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (text) {
      if (c == '\\') ++i;
      if (c == '"') text = false;
    } else if (c == '"') {
      text = true;
    } else if (json.substr(i, 2) == "//") {
      i = std::min(json.find_first_of("\r\n", i), json.size());
    } else if (json.substr(i, 2) == "/*") {
      i = std::min(json.find("*/", i + 2), json.size() - 2) + 1;
    } else if (c == '[' || c == '{') {
      found.deepest = std::max(found.deepest, ++now);
      ++found.all;
    } else if ((c == ']' || c == '}') && now > 0) {
      --now;
    }
  }
  return found;
}

bool json_deeper_than(std::string_view json, size_t depth) {
  return count_json_brackets(json).deepest > depth;
}

}  // namespace rwkv
