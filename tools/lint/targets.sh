#!/bin/sh
# Every source must be named in a CMake file, by its path relative to its top folder (or to the
# root), so that no test is written and never built. Also: every tests/<area>.cmake must be in the
# list of areas of tests/CMakeLists.txt, which includes them with OPTIONAL.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

list_files | awk '
function top(path) { return index(path, "/") ? substr(path, 1, index(path, "/")) : "" }
function read_cmake(path, line, i, n, words, word) {
  while ((getline line < path) > 0) {
    sub(/#.*/, "", line)
    if (path == "tests/CMakeLists.txt") areas = areas " " line
    gsub(/[()"]/, " ", line)
    n = split(line, words, " ")
    for (i = 1; i <= n; i++) {
      word = words[i]
      if (word !~ /\.(c|cc|cpp|cu)$/) continue
      if (sub(/^\$\{(PROJECT_SOURCE_DIR|CMAKE_SOURCE_DIR)\}\//, "", word)) named[word] = 1
      else named[top(path) word] = 1
    }
  }
  close(path)
}
/\.(c|cc|cpp|cu)$/ { sources[++count] = $0 }
/(^|\/)CMakeLists\.txt$/ || /\.cmake$/ { read_cmake($0) }
/^tests\/[^\/]*\.cmake$/ { area_files[++area_count] = $0 }
END {
  if (count == 0) { print "targets: no sources found"; exit 2 }
  for (i = 1; i <= count; i++)
    if (!(sources[i] in named)) { print sources[i] ":1: is named in no CMake file"; ++violations }
  gsub(/[()]/, " ", areas)
  for (i = 1; i <= area_count; i++) {
    name = area_files[i]; sub(/^tests\//, "", name); sub(/\.cmake$/, "", name)
    if (index(" " areas " ", " " name " ") == 0) {
      print area_files[i] ":1: " name " is not in the list of areas of tests/CMakeLists.txt"
      ++violations
    }
  }
  printf "targets: %d sources, %d test areas, %d violations\n", count, area_count, violations
  exit violations > 0
}'
