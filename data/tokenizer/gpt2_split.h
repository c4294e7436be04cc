#pragma once
/// The Unicode part of byte-level BPE tokenizers: NFC, and the cut into the pieces inside of which
/// byte pairs are merged. All text here is valid UTF-8.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

/// Cuts text with the expression of GPT-2,
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// L, N and \s being those of unicode_ranges(). Immutable: any number of threads may use one, each
/// with a Scratch of its own.
///
/// The expression is run by PCRE2 over one byte per character: ASCII characters as they are, others
/// as a letter, a number, white space or something else. So the classes are exactly the table's,
/// and matching costs the same in all scripts.
class Gpt2Splitter {
 public:
  /// What matching needs to write to.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class Gpt2Splitter;
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };

  Gpt2Splitter();
  ~Gpt2Splitter();
  Gpt2Splitter(const Gpt2Splitter&) = delete;
  Gpt2Splitter& operator=(const Gpt2Splitter&) = delete;

  /// Replaces `ends` by the ends of the pieces of `text`, in bytes. The pieces cover the text.
  void split(std::string_view text, Scratch& scratch, std::vector<size_t>& ends) const;
  /// False: the text is in NFC. True: perhaps not.
  bool may_need_nfc(std::string_view text) const;
  /// The text in normalisation form C. Time n log n for n marks on one character.
  std::string nfc(std::string_view text) const;
  /// Property White_Space of the last character; false for an empty text.
  bool ends_in_whitespace(std::string_view text) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace rwkv
