#!/bin/bash
# On a GPU machine: runs every test program with the ctest label "gpu" (by name: cuda_*, benchmarks
# left out) and prints one line for each.
#
#   checks.sh [PROGRAM...]      default: every one that was packed
#
# Programs are taken from BIN (default: this folder), golden files from RWKV_GOLDEN_DIR (default:
# ../tests/golden, else BIN/golden). The outputs of the programs go to $JOBOUT if it is set, else to a temporary folder; of
# a failure the essential part is printed. A program that skips all of its tests has failed: there
# is no GPU then.
# Exit code: 0 all passed, 1 a test failed, 2 wrong usage or nothing to run.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "${BIN:-$here}" && pwd) || exit 2
# shellcheck source-path=SCRIPTDIR source=unpack.sh
. "$here/unpack.sh"

programs=("$@")
if [ ${#programs[@]} -eq 0 ]; then
  for file in "$folder"/cuda_*; do
    name=$(basename "$file")
    case $name in
      *_bench | *.* | cuda_dist_*) continue ;;  # the last: dist.sh, on several GPUs
    esac
    if [ -f "$file" ] && [ -x "$file" ]; then programs+=("$name"); fi
  done
fi
if [ ${#programs[@]} -eq 0 ]; then
  echo "checks.sh: no program cuda_* in $folder; build and pack them first" >&2
  exit 2
fi
logs=${JOBOUT:-$(mktemp -d)}
export LD_LIBRARY_PATH=$folder/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64

failed=0
started=$SECONDS
for name in "${programs[@]}"; do
  if [ ! -x "$folder/$name" ]; then
    echo "checks.sh: there is no program $name in $folder" >&2
    exit 2
  fi
  log=$logs/$name.log
  begin=$(date +%s%N)
  "$folder/$name" --gtest_brief=0 >"$log" 2>&1
  rc=$?
  seconds=$(awk -v ns=$(($(date +%s%N) - begin)) 'BEGIN { printf "%.1f", ns / 1e9 }')
  passed=$(awk '/^\[  PASSED  \]/ { print $4 }' "$log")
  skipped=$(grep -c '^\[  SKIPPED \].*ms)' "$log")
  case $rc in
    0) verdict=ok ;;
    77) verdict='NO GPU' ;;
    *) verdict=FAILED ;;
  esac
  printf '%-7s %-28s %4s passed, %s skipped, %s s\n' "$verdict" "$name" "${passed:-0}" "$skipped" \
    "$seconds"
  if [ "$verdict" != ok ]; then
    failed=$((failed + 1))
    # What failed, and the first assertions in full.
    grep -nE '^\[  FAILED  \]' "$log" | head -n 40
    grep -nE -A 12 'Failure$|^unknown file|terminate called' "$log" | head -n 120
    if [ "$rc" -gt 128 ]; then tail -n 20 "$log"; fi
  fi
done
printf 'checks: %d programs, %d failed, %d s\n' ${#programs[@]} "$failed" $((SECONDS - started))
[ "$failed" -eq 0 ]
