#!/bin/sh
# Relative links and pictures in Markdown files point at files that exist.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

list_files | grep '\.md$' | awk '
function exists(path, line, result) { result = (getline line < path); close(path); return result >= 0 }
function is_folder(path) { return system("test -d \"" path "\"") == 0 }
{
  file = $0; ++files; n = 0; fenced = 0
  folder = file; if (!sub(/\/[^\/]*$/, "/", folder)) folder = ""
  while ((getline line < file) > 0) {
    ++n
    if (line ~ /^ *```/) { fenced = !fenced; continue }
    if (fenced) continue
    gsub(/`[^`]*`/, "", line)
    while (match(line, /\]\([^) ]+\)/)) {
      target = substr(line, RSTART + 2, RLENGTH - 3)
      line = substr(line, RSTART + RLENGTH)
      if (target ~ /^(https?:|mailto:|#)/) continue
      sub(/#.*/, "", target)
      ++links
      if (is_folder(folder target) || exists(folder target)) continue
      print file ":" n ": link to " target ", which does not exist"; ++violations
    }
  }
  close(file)
}
END {
  if (files == 0) { print "links: no Markdown files found"; exit 2 }
  printf "links: %d files, %d links, %d violations\n", files, links, violations
  exit violations > 0
}'
