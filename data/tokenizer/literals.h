#pragma once
/// Finding fixed strings in text: the added tokens of a tokenizer.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace rwkv {

/// Finds the leftmost occurrence of any of a set of strings, and the longest where several begin.
class LiteralFinder {
 public:
  struct Match {
    size_t begin, end;
    int32_t id;  ///< -1: none, and begin == end == text.size()
  };

  LiteralFinder();
  /// `literal` must not be empty; the last id given for equal strings counts.
  void add(std::string_view literal, int32_t id);
  bool empty() const { return nodes_.size() == 1; }
  /// The first match at or after `from`.
  Match find(std::string_view text, size_t from) const;

 private:
  struct Node {
    std::array<int32_t, 256> next;  ///< -1: none
    int32_t id;                     ///< of the literal that ends here, or -1
  };
  int32_t new_node();
  std::vector<Node> nodes_;  ///< a trie
};

}  // namespace rwkv
