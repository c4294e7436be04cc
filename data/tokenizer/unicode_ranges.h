#pragma once
/// Unicode properties as ranges of code points. The table is part of this program so that token ids
/// do not depend on the Unicode version of a library.

#include <cstdint>
#include <span>

namespace rwkv {

struct CodePointRange {
  uint32_t first, last;  ///< inclusive
};

/// Sorted, without overlap.
struct UnicodeRanges {
  std::span<const CodePointRange> letters;     ///< general category L
  std::span<const CodePointRange> numbers;     ///< general category N
  std::span<const CodePointRange> whitespace;  ///< property White_Space
  /// What NFC can change or join to the character before it: everything else stays as it is, and
  /// text may be normalised in parts that begin with it.
  std::span<const CodePointRange> nfc_checked;
};

UnicodeRanges unicode_ranges();

}  // namespace rwkv
