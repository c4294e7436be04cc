#!/usr/bin/env python3
"""Writes data/tokenizer/unicode_ranges.cpp from tables of Unicode properties.

  tools/unicode_ranges.py TABLES.json > data/tokenizer/unicode_ranges.cpp

TABLES.json holds code point ranges "letter", "number" ([first, last]), code points "whitespace",
"combining_class" ([code point, class]), "canonical_decomposition" ([code point, parts...], one
level) and "canonical_composition" ([first, second, composed], exclusions removed).
"""
import json
import sys


def as_ranges(code_points):
    ranges = []
    for c in sorted(code_points):
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return ranges


def nfc_checked(tables):
    """What NFC can change, or join to the character before it."""
    composed = {(a, b): c for a, b, c in tables["canonical_composition"]}
    found = {c for c, _ in tables["combining_class"]} | {b for _, b in composed}
    for c, *parts in tables["canonical_decomposition"]:
        if composed.get(tuple(parts)) != c:
            found.add(c)
    # Hangul vowels and final consonants join by arithmetic (Unicode 3.12), not by table.
    return found | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))


def emit(name, ranges):
    print(f"\nconstexpr CodePointRange {name}[] = {{")
    line = "   "
    for first, last in ranges:
        item = f" {{{first:#x}, {last:#x}}},"
        if len(line) + len(item) > 100:
            print(line)
            line = "   "
        line += item
    print(line + "\n};")


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        tables = json.load(f)
    version = tables["unicode_version"]
    print('#include "data/tokenizer/unicode_ranges.h"\n')
    print("// Written by tools/unicode_ranges.py; do not edit. Letters, numbers and white space of")
    print(f"// Unicode {version['letter_number']}, normalisation of Unicode {version['normalization']}.")
    print("\n// clang-format off\nnamespace rwkv {\nnamespace {")
    emit("kLetters", tables["letter"])
    emit("kNumbers", tables["number"])
    emit("kWhitespace", as_ranges(tables["whitespace"]))
    emit("kNfcChecked", as_ranges(nfc_checked(tables)))
    print("\n}  // namespace\n\nUnicodeRanges unicode_ranges() {")
    print("  return {kLetters, kNumbers, kWhitespace, kNfcChecked};\n}\n\n}  // namespace rwkv")


main()
