#!/bin/sh
# Sizes and leftovers: sources and scripts of at most 600 lines, no file over 1 MB (5 MB in
# tests/golden), no open work marked in the code (issues are for that), no tabs or trailing blanks
# in sources.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

list_files | while IFS= read -r file; do
  printf '%s %s\n' "$(wc -c <"$file" | tr -d ' ')" "$file"
done | awk '
function bad(line, text) { print file ":" line ": " text; ++violations }
{
  bytes = $1; file = $0; sub(/^[0-9]+ /, "", file); ++files
  limit = file ~ /^tests\/golden\// ? 5000000 : 1000000
  if (bytes > limit) bad(1, bytes " bytes, the limit is " limit)
  if (file !~ /\.(h|hpp|cuh|c|cc|cpp|cu|sh|cmake|py|awk|gp)$/ && file !~ /(^|\/)CMakeLists\.txt$/)
    next
  n = 0
  while ((getline line < file) > 0) {
    ++n
    # Written in halves so that this file passes its own check.
    if (line ~ /(^|[^A-Za-z])(TO[D]O|FIX[M]E|XX[X]|HAC[K])([^A-Za-z]|$)/) bad(n, "open work belongs in an issue")
    if (line ~ /[ \t]$/) bad(n, "blank at the end of the line")
    if (line ~ /\t/) bad(n, "tab")
  }
  close(file)
  if (n > 600) bad(n, n " lines, the limit is 600: split it by subject")
}
END {
  if (files == 0) { print "files: no files found"; exit 2 }
  printf "files: %d files, %d violations\n", files, violations
  exit violations > 0
}'
