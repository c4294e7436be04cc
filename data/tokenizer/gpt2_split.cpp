#include "data/tokenizer/gpt2_split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <span>

#include "data/tokenizer/unicode_ranges.h"
#include "data/tokenizer/utf8.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

// Stand-ins for characters outside of ASCII; what else a character is comes in the bits above.
enum : uint8_t { kLetter = 0x80, kNumber, kSpace, kOther, kKindMask = 0x83, kNfcChecked = 0x40 };

constexpr uint32_t kCodePoints = 0x110000;

/// The character that begins at s[at], and its length.
struct Character {
  uint32_t code;
  size_t length;
};
Character character_at(std::string_view s, size_t at) {
  const auto byte = [&](size_t i) { return uint32_t{static_cast<unsigned char>(s[at + i])}; };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 31) << 6 | (byte(1) & 63), 2};
  if (lead < 0xF0) return {(lead & 15) << 12 | (byte(1) & 63) << 6 | (byte(2) & 63), 3};
  return {(lead & 7) << 18 | (byte(1) & 63) << 12 | (byte(2) & 63) << 6 | (byte(3) & 63), 4};
}

size_t character_length(char first) {
  const auto lead = static_cast<unsigned char>(first);
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

std::string pcre_message(int code) {
  char text[256] = "";
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
  return text;
}

}  // namespace

struct Gpt2Splitter::Scratch::Impl {
  // One pair of offsets: the expression has no groups.
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  std::string kinds;
  ~Impl() { pcre2_match_data_free(match); }
};

Gpt2Splitter::Scratch::Scratch() : impl_(std::make_unique<Impl>()) {
  RWKV_ASSERT(impl_->match != nullptr, "PCRE2 is out of memory");
}
Gpt2Splitter::Scratch::~Scratch() = default;

struct Gpt2Splitter::Impl {
  pcre2_code* code = nullptr;
  bool compiled_to_machine_code = false;
  std::vector<uint8_t> properties;  ///< [code point]: kind | kNfcChecked

  Impl() : properties(kCodePoints, kOther) {
    const UnicodeRanges u = unicode_ranges();
    const auto set = [&](std::span<const CodePointRange> ranges, uint8_t kind) {
      for (const auto& r : ranges)
        for (uint32_t c = r.first; c <= r.last; ++c) properties[c] = kind;
    };
    set(u.letters, kLetter);
    set(u.numbers, kNumber);
    set(u.whitespace, kSpace);
    for (const auto& r : u.nfc_checked)
      for (uint32_t c = r.first; c <= r.last; ++c) properties[c] |= kNfcChecked;
    compile();
  }
  ~Impl() { pcre2_code_free(code); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  uint8_t kind(uint32_t c) const { return properties[c] & kKindMask; }
  bool nfc_checked(uint32_t c) const { return (properties[c] & kNfcChecked) != 0; }

  /// The members of a class: its stand-in and its ASCII characters.
  std::string members(uint8_t wanted) const {
    std::string out;
    const auto add = [&](unsigned value) {
      static constexpr char kHex[] = "0123456789abcdef";
      out += {'\\', 'x', kHex[value >> 4], kHex[value & 15]};
    };
    for (uint32_t c = 0; c < 0x80; ++c)
      if (kind(c) == wanted) add(c);
    add(wanted);
    return out;
  }
  void compile() {
    const std::string l = members(kLetter), n = members(kNumber), s = members(kSpace);
    const std::string pattern = "'s|'t|'re|'ve|'m|'ll|'d| ?[" + l + "]+| ?[" + n + "]+| ?[^" + s +
                                l + n + "]+|[" + s + "]+(?![^" + s + "])|[" + s + "]+";
    int error = 0;
    PCRE2_SIZE where = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                         PCRE2_ANCHORED, &error, &where, nullptr);
    RWKV_ASSERT(code != nullptr, "PCRE2 rejects the pre-tokenizer's expression at ", where, ": ",
                pcre_message(error));
    // Not every build of PCRE2 has the compiler; without it matching is slower, but the same.
    compiled_to_machine_code = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
  }
};

Gpt2Splitter::Gpt2Splitter() : impl_(std::make_unique<Impl>()) {}
Gpt2Splitter::~Gpt2Splitter() = default;

void Gpt2Splitter::split(std::string_view text, Scratch& scratch, std::vector<size_t>& ends) const {
  ends.clear();
  // Characters to kinds; ASCII text is its own.
  std::string& kinds = scratch.impl_->kinds;
  size_t ascii = 0;
  while (ascii < text.size() && static_cast<unsigned char>(text[ascii]) < 0x80) ++ascii;
  std::string_view subject = text;
  if (ascii < text.size()) {
    kinds.assign(text.substr(0, ascii));
    for (size_t at = ascii; at < text.size();) {
      const Character c = character_at(text, at);
      kinds += static_cast<char>(c.code < 0x80 ? c.code : impl_->kind(c.code));
      at += c.length;
    }
    subject = kinds;
  }
  const auto* s = reinterpret_cast<PCRE2_SPTR>(subject.data());
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(scratch.impl_->match);
  size_t byte = 0;
  for (size_t at = 0; at < subject.size();) {
    int found = 0;
    if (impl_->compiled_to_machine_code)
      found = pcre2_jit_match(impl_->code, s, subject.size(), at, 0, scratch.impl_->match, nullptr);
    if (!impl_->compiled_to_machine_code || found == PCRE2_ERROR_JIT_STACKLIMIT)
      found = pcre2_match(impl_->code, s, subject.size(), at, 0, scratch.impl_->match, nullptr);
    RWKV_ASSERT(found > 0 && bounds[1] > at, "PCRE2 found no piece: ", pcre_message(found));
    if (subject.data() == text.data()) {
      byte = bounds[1];
    } else {
      for (; at < bounds[1]; ++at) byte += character_length(text[byte]);
    }
    at = bounds[1];
    ends.push_back(byte);
  }
}

bool Gpt2Splitter::may_need_nfc(std::string_view text) const {
  for (size_t at = 0; at < text.size();) {
    // U+0300, the first that is concerned, begins with byte CC.
    if (static_cast<unsigned char>(text[at]) < 0xCC) {
      ++at;
      continue;
    }
    const Character c = character_at(text, at);
    if (impl_->nfc_checked(c.code)) return true;
    at += c.length;
  }
  return false;
}

namespace {

/// Appends NFC of `text`, whose first character is a starter or begins everything. The library
/// could do it in one call, but sorts marks in quadratic time, and no text limits how many follow
/// one another. `work` is for reuse.
void append_nfc(std::string_view text, std::vector<utf8proc_int32_t>& work, std::string& out) {
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  work.clear();
  for (size_t at = 0; at < text.size();) {
    const Character c = character_at(text, at);
    std::array<utf8proc_int32_t, 8> parts{};  // canonical decompositions have at most 4
    int boundary = 0;
    const auto n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.code), parts.data(),
                                           std::ssize(parts), kOptions, &boundary);
    RWKV_ASSERT(n >= 0 && n <= std::ssize(parts), "normalising text: U+", c.code, " has ", n,
                " parts");
    work.insert(work.end(), parts.begin(), parts.begin() + n);
    at += c.length;
  }
  // Canonical order: marks by their classes, equal ones as they came.
  const auto rank = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  const auto starts = [&](utf8proc_int32_t c) { return rank(c) == 0; };
  for (auto first = work.begin(); first != work.end();) {
    const auto last = std::find_if(first, work.end(), starts);
    if (!std::ranges::is_sorted(first, last, {}, rank))
      std::ranges::stable_sort(first, last, {}, rank);
    first = std::find_if_not(last, work.end(), starts);
  }
  const auto n = utf8proc_normalize_utf32(work.data(), std::ssize(work), kOptions);
  RWKV_ASSERT(n >= 0, "normalising text: ", utf8proc_errmsg(n));
  for (auto c = work.begin(); c != work.begin() + n; ++c)
    append_utf8(static_cast<uint32_t>(*c), out);
}

}  // namespace

std::string Gpt2Splitter::nfc(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> work;
  // Characters that are concerned are normalised together with the one before them, which is where
  // they may join; from the next one on nothing depends on them.
  size_t copied = 0, before = 0;
  for (size_t at = 0; at < text.size();) {
    Character c = character_at(text, at);
    if (!impl_->nfc_checked(c.code)) {
      before = at;
      at += c.length;
      continue;
    }
    out += text.substr(copied, before - copied);
    while (at < text.size() && impl_->nfc_checked((c = character_at(text, at)).code))
      at += c.length;
    append_nfc(text.substr(before, at - before), work, out);
    copied = before = at;
  }
  return out += text.substr(copied);
}

bool Gpt2Splitter::ends_in_whitespace(std::string_view text) const {
  if (text.empty()) return false;
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return impl_->kind(character_at(text, at).code) == kSpace;
}

}  // namespace rwkv
