#!/bin/sh
# Records of GPU measurements (tools/records, all but cpu-*): each is JSON and carries the hash of the
# kernels it was made with (tools/kernel_hash.sh). A record made with other kernels than those of
# the tree is named, and the lint then counts as skipped (exit code 77): measure again with
# tools/gpu/bench.sh when the work on the kernels is done.
# shellcheck source-path=SCRIPTDIR
hash_of=$(cd "$(dirname "$0")/.." && pwd)/kernel_hash.sh
. "$(dirname "$0")/common.sh"

records=$(list_files | grep -E '^tools/records/[^/]*\.json$' | grep -v '/cpu-')
if [ -z "$records" ]; then
  echo "records: no records of a GPU"
  exit 0
fi
now=$("$hash_of" .) || exit 2

# shellcheck disable=SC2086  # a list of files, none with blanks
awk -v now="$now" '
function bad(text) { print name ":1: " text; ++violations }
# What remains of JSON after its strings became S and its numbers and words N is reduced until one
# value is left.
function is_json(text, before) {
  gsub(/\\\\/, "", text); gsub(/\\"/, "", text)
  gsub(/"[^"]*"/, "S", text)
  gsub(/(true|false|null|-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?)/, "N", text)
  gsub(/[ \t\r\n]/, "", text)
  if (text !~ /^\{/) return 0
  do {
    before = text
    gsub(/S:[SNV]/, "P", text)
    gsub(/\{(P(,P)*)?\}/, "V", text)
    gsub(/\[([SNV](,[SNV])*)?\]/, "V", text)
  } while (text != before)
  return text == "V"
}
function check(line, commit) {
  ++count
  if (!is_json(all)) { bad("is not JSON"); return }
  if (!match(all, /"kernel_hash": *"[0-9a-f]+"/)) {
    bad("has no \"kernel_hash\" (tools/kernel_hash.sh prints it)"); return
  }
  line = substr(all, RSTART, RLENGTH); gsub(/.*: *"|"$/, "", line)
  if (length(line) != 64) { bad("its kernel_hash has " length(line) " digits, expected 64"); return }
  if (line != now) {
    commit = match(all, /"commit": *"[^"]*"/) ? substr(all, RSTART, RLENGTH) : ""
    gsub(/^"commit": *"|"$/, "", commit)
    print name ":1: was measured with other kernels" (commit == "" ? "" : ", at commit " commit)
    ++stale
  }
}
FNR == 1 && NR > 1 { check(); all = "" }
{ name = FILENAME; all = all $0 "\n" }
END {
  check()
  printf "records: %d GPU records, %d violations, %d with other kernels\n", count, violations, stale
  exit violations > 0 ? 1 : stale > 0 ? 77 : 0
}' $records
