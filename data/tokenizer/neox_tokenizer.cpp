#include "data/tokenizer/neox_tokenizer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <utility>

#include "data/io/sha256.h"
#include "data/tokenizer/gpt2_split.h"
#include "data/tokenizer/literals.h"
#include "data/tokenizer/tokenizer_json.h"
#include "data/tokenizer/utf8.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

/// The ids of recent words. A word has one place, where it replaces what was there.
class WordCache {
 public:
  static constexpr size_t kMaxBytes = 22, kMaxIds = 10;
  struct Entry {
    std::array<char, kMaxBytes> bytes;
    uint8_t size = 0, count = 0;  ///< size 0: empty
    std::array<int32_t, kMaxIds> ids;
    bool holds(std::string_view word) const {
      return size == word.size() && std::memcmp(bytes.data(), word.data(), size) == 0;
    }
  };
  WordCache() : entries_(size_t{1} << kLog2) {}
  /// `word` has at most kMaxBytes.
  Entry& place(std::string_view word) {
    std::array<uint64_t, 3> w{};
    std::memcpy(w.data(), word.data(), word.size());
    uint64_t h = (w[0] ^ word.size()) * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 32 ^ w[1]) * 0xC2B2AE3D27D4EB4Fu;
    h = (h ^ h >> 32 ^ w[2]) * 0x9E3779B97F4A7C15u;
    return entries_[static_cast<size_t>(h >> (64 - kLog2))];
  }

 private:
  static constexpr int kLog2 = 15;  // 2 MiB
  std::vector<Entry> entries_;
};

/// What encoding writes to; a thread takes one for a call.
struct Workspace {
  Gpt2Splitter::Scratch split;
  WordCache cache;
  std::vector<size_t> ends;
  std::vector<int32_t> symbols;
};

bool ascii_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

}  // namespace

struct NeoxTokenizer::Impl {
  explicit Impl(BpeVocabulary given) : v(std::move(given)), pairs(v.merges) {
    v.merges = {};
    for (const AddedToken& t : v.added) {
      // The reference normalises what it looks for in normalised text.
      const std::string wanted = t.normalized && v.nfc ? splitter.nfc(t.content) : t.content;
      (t.normalized ? late : early).add(wanted, t.id);
      for (size_t i = 1; i < wanted.size(); ++i)
        cuttable = cuttable && (ascii_space(wanted[i - 1]) || !ascii_space(wanted[i]));
    }
  }

  std::unique_ptr<Workspace> take() {
    {
      const std::lock_guard lock(mutex);
      if (!idle.empty()) {
        auto w = std::move(idle.back());
        idle.pop_back();
        return w;
      }
    }
    return std::make_unique<Workspace>();
  }
  void give_back(std::unique_ptr<Workspace> w) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(w));
  }

  /// Hands the stretches between the literals to `rest`, and appends the literals' ids.
  template <class Rest>
  static void cut_out(const LiteralFinder& finder, std::string_view text, std::vector<int32_t>& ids,
                      const Rest& rest) {
    for (size_t at = 0; at < text.size();) {
      const auto m = finder.find(text, at);
      if (m.begin > at) rest(text.substr(at, m.begin - at));
      if (m.id >= 0) ids.push_back(m.id);
      at = m.end;
    }
  }

  void merge(std::string_view word, std::vector<int32_t>& symbols) const {
    symbols.clear();
    for (const char c : word) symbols.push_back(v.byte_ids[static_cast<unsigned char>(c)]);
    pairs.merge(symbols);
  }

  void encode_word(std::string_view word, Workspace& w, std::vector<int32_t>& ids) const {
    if (word.size() == 1) {
      ids.push_back(v.byte_ids[static_cast<unsigned char>(word[0])]);
      return;
    }
    if (word.size() > WordCache::kMaxBytes) {
      merge(word, w.symbols);
      ids.insert(ids.end(), w.symbols.begin(), w.symbols.end());
      return;
    }
    WordCache::Entry& e = w.cache.place(word);
    if (!e.holds(word)) {
      merge(word, w.symbols);
      if (w.symbols.size() > WordCache::kMaxIds) {
        ids.insert(ids.end(), w.symbols.begin(), w.symbols.end());
        return;
      }
      std::memcpy(e.bytes.data(), word.data(), word.size());
      e.size = static_cast<uint8_t>(word.size());
      e.count = static_cast<uint8_t>(w.symbols.size());
      std::copy(w.symbols.begin(), w.symbols.end(), e.ids.begin());
    }
    ids.insert(ids.end(), e.ids.begin(), e.ids.begin() + e.count);
  }

  void encode_words(std::string_view text, Workspace& w, std::vector<int32_t>& ids) const {
    splitter.split(text, w.split, w.ends);
    size_t begin = 0;
    for (const size_t end : w.ends) {
      encode_word(text.substr(begin, end - begin), w, ids);
      begin = end;
    }
  }

  void encode(std::string_view text, Workspace& w, std::vector<int32_t>& ids) const {
    const auto words = [&](std::string_view s) { encode_words(s, w, ids); };
    cut_out(early, text, ids, [&](std::string_view piece) {
      if (v.nfc && splitter.may_need_nfc(piece))
        cut_out(late, splitter.nfc(piece), ids, words);
      else
        cut_out(late, piece, ids, words);
    });
  }

  BpeVocabulary v;
  BytePairs pairs;
  Gpt2Splitter splitter;
  LiteralFinder early, late;  ///< added tokens: before and after normalisation
  bool cuttable = true;       ///< no added token has a white space after something else
  std::mutex mutex;
  std::vector<std::unique_ptr<Workspace>> idle;  ///< guarded by mutex
};

NeoxTokenizer::NeoxTokenizer(std::string json, const std::string& origin) : json_(std::move(json)) {
  std::erase(json_, '\r');
  hash_ = sha256_hex(json_);
  impl_ = std::make_unique<Impl>(parse_tokenizer_json(json_, origin));
}

NeoxTokenizer::~NeoxTokenizer() = default;

int32_t NeoxTokenizer::vocab_size() const {
  return static_cast<int32_t>(impl_->v.tokens.size());
}

std::string_view NeoxTokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return impl_->v.tokens[static_cast<size_t>(id)];
}

void NeoxTokenizer::encode_to(std::string_view text, std::vector<int32_t>& ids) const {
  std::string repaired;
  if (!is_valid_utf8(text)) text = repaired = to_valid_utf8(text);
  auto w = impl_->take();
  impl_->encode(text, *w, ids);
  impl_->give_back(std::move(w));
}

size_t NeoxTokenizer::safe_cut(std::string_view text, size_t from) const {
  if (!impl_->cuttable) return 0;
  for (size_t i = text.size(), first = std::max<size_t>(from, 1); i-- > first;) {
    if (!ascii_space(text[i]) || ascii_space(text[i - 1])) continue;
    // The last character before the cut may be damaged: then it is no white space.
    const std::string_view before = text.substr(i >= 4 ? i - 4 : 0, std::min<size_t>(i, 4));
    if (!impl_->splitter.ends_in_whitespace(to_valid_utf8(before))) return i;
  }
  return 0;
}

}  // namespace rwkv
