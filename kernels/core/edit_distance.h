#pragma once
/// How far a mistyped name is from a known one, for "did you mean" in error messages.

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <vector>

namespace rwkv {

/// Levenshtein distance: the number of insertions, deletions and substitutions from a to b.
inline size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t next = std::min({row[j] + 1, row[j + 1] + 1, diagonal + (a[i] != b[j] ? 1 : 0)});
      diagonal = row[j + 1];
      row[j + 1] = next;
    }
  }
  return row.back();
}

/// Whether a known name at this distance is worth suggesting: at most half of the letters differ.
inline bool worth_suggesting(size_t distance, std::string_view mistyped) {
  return 2 * distance <= mistyped.size();
}

}  // namespace rwkv
