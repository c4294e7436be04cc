#include "data/tokenizer/literals.h"

namespace rwkv {

LiteralFinder::LiteralFinder() {
  new_node();
}

int32_t LiteralFinder::new_node() {
  Node node;
  node.next.fill(-1);
  node.id = -1;
  nodes_.push_back(node);
  return static_cast<int32_t>(nodes_.size()) - 1;
}

void LiteralFinder::add(std::string_view literal, int32_t id) {
  size_t at = 0;
  for (const char c : literal) {
    const auto b = static_cast<unsigned char>(c);
    if (nodes_[at].next[b] < 0) {
      const int32_t made = new_node();  // may move the nodes
      nodes_[at].next[b] = made;
    }
    at = static_cast<size_t>(nodes_[at].next[b]);
  }
  nodes_[at].id = id;
}

LiteralFinder::Match LiteralFinder::find(std::string_view text, size_t from) const {
  const auto& first = nodes_[0].next;
  for (size_t begin = from; begin < text.size() && !empty(); ++begin) {
    int32_t node = first[static_cast<unsigned char>(text[begin])];
    Match match{begin, begin, -1};
    for (size_t at = begin + 1; node >= 0; ++at) {
      const Node& n = nodes_[static_cast<size_t>(node)];
      if (n.id >= 0) match = {begin, at, n.id};
      if (at == text.size()) break;
      node = n.next[static_cast<unsigned char>(text[at])];
    }
    if (match.id >= 0) return match;
  }
  return {text.size(), text.size(), -1};
}

}  // namespace rwkv
