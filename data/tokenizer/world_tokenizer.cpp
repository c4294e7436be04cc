#include "data/tokenizer/world_tokenizer.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "data/io/sha256.h"
#include "data/tokenizer/utf8.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

constexpr int32_t kMaxId = 1 << 20;  // far above any vocabulary: catches damaged files
/// Of all entries: the tree takes up to a hundred bytes for each. The World vocabulary has 0.5 MB.
constexpr size_t kMaxBytes = size_t{8} << 20;

std::optional<uint32_t> hex_number(std::string_view digits) {
  uint32_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

/// The bytes of a Python string or bytes literal; nullopt if it is not one.
std::optional<std::string> python_literal(std::string_view s) {
  const bool is_bytes = s.starts_with('b');
  if (is_bytes) s.remove_prefix(1);
  if (s.size() < 2 || (s[0] != '\'' && s[0] != '"') || s.back() != s[0]) return std::nullopt;
  const char quote = s[0];
  s = s.substr(1, s.size() - 2);
  std::string out;
  for (size_t i = 0; i < s.size(); ++i) {
    if (s[i] == quote) return std::nullopt;
    if (s[i] != '\\') {
      out += s[i];
      continue;
    }
    if (++i == s.size()) return std::nullopt;
    size_t digits = 0;
    switch (s[i]) {
      case 't':
        out += '\t';
        continue;
      case 'n':
        out += '\n';
        continue;
      case 'r':
        out += '\r';
        continue;
      case 'a':
        out += '\a';
        continue;
      case 'b':
        out += '\b';
        continue;
      case 'f':
        out += '\f';
        continue;
      case 'v':
        out += '\v';
        continue;
      case '0':
        out += '\0';
        continue;
      case '\\':
      case '\'':
      case '"':
        out += s[i];
        continue;
      case 'x':
        digits = 2;
        break;
      case 'u':
        digits = 4;
        break;
      case 'U':
        digits = 8;
        break;
      default:
        return std::nullopt;
    }
    if (is_bytes && digits != 2) return std::nullopt;
    if (s.size() - i - 1 < digits) return std::nullopt;
    const auto value = hex_number(s.substr(i + 1, digits));
    if (!value) return std::nullopt;
    i += digits;
    // In text \x80 is the code point U+0080, two bytes; in a bytes literal it is one byte.
    if (is_bytes)
      out += static_cast<char>(*value);
    else if (!append_utf8(*value, out))
      return std::nullopt;
  }
  return out;
}

}  // namespace

WorldTokenizer::WorldTokenizer(std::string text, const std::string& origin)
    : text_(std::move(text)) {
  std::erase(text_, '\r');
  hash_ = sha256_hex(text_);
  parse(origin);
  build_trie();
}

void WorldTokenizer::parse(const std::string& origin) {
  std::vector<std::pair<int32_t, std::string>> entries;
  size_t line_number = 0, total = 0;
  for (size_t at = 0; at < text_.size();) {
    const size_t end = std::min(text_.find('\n', at), text_.size());
    const std::string_view line(text_.data() + at, end - at);
    at = end + 1;
    ++line_number;
    if (line.empty()) continue;
    const auto bad = [&](std::string_view what) {
      throw IoError(str("reading the World vocabulary ", origin, ", line ", line_number, ": ", what,
                        "; expected ID 'LITERAL' LENGTH. Is this ", kWorldVocabularyFile, "?"));
    };
    const size_t first = line.find(' '), last = line.rfind(' ');
    if (first == std::string_view::npos || last <= first) bad("fewer than three fields");
    int32_t id = 0, length = 0;
    const auto number = [&](std::string_view field, int32_t& value) {
      const auto [stop, error] = std::from_chars(field.data(), field.data() + field.size(), value);
      return error == std::errc{} && stop == field.data() + field.size();
    };
    if (!number(line.substr(0, first), id) || id < 1 || id > kMaxId) bad("bad id");
    if (!number(line.substr(last + 1), length)) bad("bad length");
    auto bytes = python_literal(line.substr(first + 1, last - first - 1));
    if (!bytes) bad("not a Python literal");
    if (bytes->empty()) bad("empty entry");
    if (static_cast<int32_t>(bytes->size()) != length)
      bad(str("the literal has ", bytes->size(), " bytes, the line says ", length));
    total += bytes->size();
    if (total > kMaxBytes) bad(str("more than ", kMaxBytes, " bytes in all entries"));
    entries.emplace_back(id, std::move(*bytes));
  }
  std::sort(entries.begin(), entries.end());
  RWKV_CHECK(!entries.empty(), IoError, "reading the World vocabulary ", origin, ": it is empty");
  for (size_t i = 1; i < entries.size(); ++i)
    RWKV_CHECK(entries[i].first != entries[i - 1].first, IoError, "reading the World vocabulary ",
               origin, ": id ", entries[i].first, " occurs twice");
  const auto size = static_cast<size_t>(entries.back().first) + 1;
  offset_.reserve(size + 1);
  offset_.push_back(0);
  for (const auto& [id, bytes] : entries) {
    while (offset_.size() <= static_cast<size_t>(id))
      offset_.push_back(static_cast<uint32_t>(pool_.size()));
    pool_ += bytes;
    offset_.push_back(static_cast<uint32_t>(pool_.size()));
  }
  std::vector<bool> single(256);
  adjacent_.assign(size_t{256} * 256, false);
  for (const auto& [id, bytes] : entries)
    for (size_t i = 1; i < bytes.size(); ++i)
      adjacent_[size_t{256} * static_cast<unsigned char>(bytes[i - 1]) +
                static_cast<unsigned char>(bytes[i])] = true;
  for (const auto& [id, bytes] : entries)
    if (bytes.size() == 1) single[static_cast<unsigned char>(bytes[0])] = true;
  for (int b = 0; b < 256; ++b)
    RWKV_CHECK(single[static_cast<size_t>(b)], IoError, "reading the World vocabulary ", origin,
               ": no entry for the single byte ", b, "; some texts could not be encoded");
}

void WorldTokenizer::build_trie() {
  std::vector<int32_t> order;
  for (int32_t id = 1; id < vocab_size(); ++id)
    if (!token_bytes(id).empty()) order.push_back(id);
  // Equal byte strings under two ids: the later id wins, as when a dictionary is filled in order.
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return token_bytes(a) < token_bytes(b); });

  std::vector<bool> used;
  const auto grow = [&] {
    slots_.resize(slots_.size() + 256);
    used.resize(slots_.size(), false);
  };
  grow();
  used[0] = true;  // the root; its children get the second block
  size_t first_free = 1;

  struct Range {
    int32_t node;
    size_t begin, end, depth;
  };
  std::vector<Range> queue{{0, 0, order.size(), 0}};
  std::vector<std::pair<unsigned char, size_t>> labels;  // byte, begin of its range
  for (size_t head = 0; head < queue.size(); ++head) {
    const Range r = queue[head];
    labels.clear();
    for (size_t i = r.begin; i < r.end; ++i) {
      const std::string_view bytes = token_bytes(order[i]);
      if (bytes.size() == r.depth) {
        slots_[static_cast<size_t>(r.node)].id = order[i];
        continue;
      }
      const auto c = static_cast<unsigned char>(bytes[r.depth]);
      if (labels.empty() || labels.back().first != c) labels.emplace_back(c, i);
    }
    if (labels.empty()) continue;
    while (first_free < used.size() && used[first_free]) ++first_free;
    // First fit over the free slots; after a while a fresh block is cheaper than more searching.
    size_t base = 0;
    bool found = false;
    int tries = 0;
    for (size_t s = first_free; s < used.size() && tries < 512; ++s) {
      if (used[s]) continue;
      ++tries;
      base = s ^ labels[0].first;
      found = std::none_of(labels.begin(), labels.end(),
                           [&](const auto& l) { return used[base ^ l.first]; });
      if (found) break;
    }
    if (!found) {
      base = slots_.size();
      grow();
    }
    slots_[static_cast<size_t>(r.node)].base = static_cast<int32_t>(base);
    for (size_t k = 0; k < labels.size(); ++k) {
      const size_t child = base ^ labels[k].first;
      used[child] = true;
      slots_[child].parent = r.node;
      queue.push_back({static_cast<int32_t>(child), labels[k].second,
                       k + 1 < labels.size() ? labels[k + 1].second : r.end, r.depth + 1});
    }
  }
}

std::string_view WorldTokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const auto i = static_cast<size_t>(id);
  return std::string_view(pool_).substr(offset_[i], offset_[i + 1] - offset_[i]);
}

size_t WorldTokenizer::safe_cut(std::string_view text, size_t from) const {
  for (size_t i = text.size(), first = std::max<size_t>(from, 1); i-- > first;) {
    const auto a = static_cast<unsigned char>(text[i - 1]);
    if (!adjacent_[size_t{256} * a + static_cast<unsigned char>(text[i])]) return i;
  }
  return 0;
}

void WorldTokenizer::encode_to(std::string_view text, std::vector<int32_t>& ids) const {
  const Slot* slots = slots_.data();
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const auto* const end = p + text.size();
  while (p < end) {
    const unsigned char* match_end = p;
    int32_t match = -1, node = 0;
    for (const unsigned char* q = p; q < end;) {
      const int32_t next = slots[node].base ^ *q;
      if (slots[next].parent != node) break;
      node = next;
      ++q;
      if (slots[node].id >= 0) {
        match = slots[node].id;
        match_end = q;
      }
    }
    ids.push_back(match);  // single bytes are entries, so something matched
    p = match_end;
  }
}

}  // namespace rwkv
