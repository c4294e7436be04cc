#!/bin/bash
# After bench.sh: takes the records of OUT into tools/records and draws their pictures in docs/images
# (with gnuplot).
#
#   tools/gpu/records.sh BIN OUT NAME...
#
# BIN: the folder with rwkv-bench; NAME: which records, for instance wkv4 for OUT/wkv4.json, which
# becomes tools/records/h200-wkv4.json. Pictures: wkv-lengths, wkv4, train-times, train-times-large.
# Exit code: 0 done, 2 wrong usage, 3 a record is missing.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "records.sh: give the folder of rwkv-bench, that of the records, and their names" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
bench=$1/rwkv-bench out=$2
shift 2
for name in "$@"; do
  if [ ! -f "$out/$name.json" ]; then
    echo "records.sh: there is no $out/$name.json" >&2
    exit 3
  fi
  record=$root/tools/records/h200-$name.json
  # Without the temporary folders of the other machine.
  sed 's#/tmp/tmp\.[A-Za-z0-9]*/##g' "$out/$name.json" >"$record"
  case $name in
    wkv-lengths) "$bench" wkv --from "$record" --plot "$root/docs/images/wkv7-h200.png" ;;
    wkv4) "$bench" wkv --from "$record" --plot "$root/docs/images/wkv4-h200.png" ;;
    train-times | train-times-large)
      "$bench" train-times --from "$record" --plot "$root/docs/images/$name-h200.png"
      ;;
  esac
done
rm -f "$root"/docs/images/*.gp
