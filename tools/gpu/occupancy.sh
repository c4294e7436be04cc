#!/bin/bash
# On a GPU machine with ncu: what the WKV-4 kernels keep busy, serial against scan, f32, as
# OUT/wkv4-occupancy.txt and .json: per kernel of the last forward and backward of each shape its
# time, grid and block, and in percent of the card's peak over the whole run of the kernel
#   busy    multiprocessor cycles with a block
#   warps   resident warps (achieved occupancy, idle multiprocessors included)
#   issue   issue slots that were used
#   dram    memory throughput
#
#   occupancy.sh [OUT [B,T,C...]]     OUT: default $JOBOUT, else ./records; 30 s with the default shapes
#
# Programs are taken from BIN (default: this folder). ncu serialises kernels, so that times may differ
# from rwkv-bench's. Exit code: 0, 1 if ncu failed or found nothing, 2 no ncu.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "${BIN:-$here}" && pwd) || exit 2
# shellcheck source-path=SCRIPTDIR source=unpack.sh
. "$here/unpack.sh"
export LD_LIBRARY_PATH=$folder/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
ncu=$(command -v ncu || echo /usr/local/cuda/bin/ncu)
if [ ! -x "$ncu" ]; then
  echo "occupancy.sh: ncu is missing; it comes with the CUDA toolkit" >&2
  exit 2
fi
out=${1:-${JOBOUT:-records}}
if [ $# -gt 0 ]; then shift; fi
shapes=("$@")
if [ ${#shapes[@]} -eq 0 ]; then shapes=('1,1024,32' '1,65536,32' '2,1024,768' '8,4096,768' '8,16384,768'); fi
mkdir -p "$out" || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

metrics=gpu__time_duration.sum
metrics+=,sm__cycles_active.avg.pct_of_peak_sustained_elapsed
metrics+=,sm__warps_active.avg.pct_of_peak_sustained_elapsed
metrics+=,smsp__issue_active.avg.pct_of_peak_sustained_elapsed
metrics+=,dram__throughput.avg.pct_of_peak_sustained_elapsed
: >"$work/all.csv"
for shape in "${shapes[@]}"; do
  for variant in serial scan; do
    # Only WKV-4's own kernels: those of the namespaces rwkv::cuda, not of the benchmark.
    rc=0
    timeout -k 5 60 "$ncu" --csv --profile-from-start off --cache-control none \
      --clock-control none --metrics $metrics --kernel-name-base demangled \
      --kernel-name 'regex:Wkv4|wkv4' \
      "$folder/rwkv-bench" wkv --arch rwkv4 --device cuda --dtype f32 --repeats 1 --shape "$shape" \
      --variant $variant --json "$work/run.json" >"$work/run.csv" 2>"$work/err" || rc=$?
    if [ $rc -ne 0 ] || ! grep -q '^"[0-9]' "$work/run.csv"; then
      echo "occupancy.sh: ncu failed for $shape, $variant:" >&2
      tail -n 5 "$work/err" "$work/run.csv" >&2
      exit 1
    fi
    grep '^"' "$work/run.csv" | sed "s/^/\"$shape $variant\",/" >>"$work/all.csv"
  done
done

# A member of rwkv-bench's record: a line of its own.
member() {
  sed -n "s/^ \"$1\": \"\(.*\)\",*$/\1/p" "$work/run.json" | head -n 1
}
# Long form: a line per launch and metric, all fields quoted. The last launch of every kernel counts.
awk -F '","' -v commit="$(member commit)" -v hash="$(member kernel_hash)" \
  -v device="$(member device)" -v day="$(member date)" -v text="$out/wkv4-occupancy.txt" '
function number(x) { gsub(/[",]/, "", x); return x + 0 }
function clean(name) { gsub(/\(anonymous namespace\)::/, "", name); sub(/\(.*/, "", name); sub(/^void /, "", name)
  sub(/^.*::/, "", name); return name }
$2 == "ID" { for (i = 1; i <= NF; ++i) { f = $i; gsub(/"/, "", f); at[f] = i }; next }
{
  run = $1; sub(/^"/, "", run)
  kernel = clean($at["Kernel Name"])
  key = run SUBSEP kernel
  if (!(key in grid)) order[++n] = key
  grid[key] = $at["Grid Size"]; block[key] = $at["Block Size"]
  m = $at["Metric Name"]; v = number($at["Metric Value"])
  unit = $at["Metric Unit"]
  if (m ~ /^gpu__time/) {
    if (unit == "ns" || unit == "nsecond") v /= 1000
    if (unit == "ms" || unit == "msecond") v *= 1000
    if (unit == "s" || unit == "second") v *= 1e6
    us[key] = v
  }
  if (m ~ /^sm__cycles/) busy[key] = v
  if (m ~ /^sm__warps/) warps[key] = v
  if (m ~ /^smsp__issue/) issue[key] = v
  if (m ~ /^dram/) dram[key] = v
}
END {
  printf "{\n \"benchmark\": \"wkv4-occupancy\",\n \"date\": \"%s\",\n \"commit\": \"%s\",\n \"kernel_hash\": \"%s\",\n \"device\": \"%s\",\n", day, commit, hash, device
  printf " \"dtype\": \"f32\",\n \"unit\": \"percent of peak over the whole kernel, all multiprocessors\",\n \"rows\": ["
  printf "%-14s %-8s %-32s %-18s %10s %7s %7s %7s %7s\n", "B,T,C", "variant", "kernel", "grid", "us", "busy", "warps", "issue", "dram" >text
  for (i = 1; i <= n; ++i) {
    key = order[i]; split(key, part, SUBSEP); split(part[1], w, " ")
    printf "%s\n  {\"shape\":\"%s\",\"variant\":\"%s\",\"kernel\":\"%s\",\"grid\":\"%s\",\"block\":\"%s\",\"us\":%.2f,\"busy\":%.2f,\"warps\":%.2f,\"issue\":%.2f,\"dram\":%.2f}", (i > 1 ? "," : ""), w[1], w[2], part[2], grid[key], block[key], us[key], busy[key], warps[key], issue[key], dram[key]
    printf "%-14s %-8s %-32s %-18s %10.2f %7.2f %7.2f %7.2f %7.2f\n", w[1], w[2], substr(part[2], 1, 32), grid[key], us[key], busy[key], warps[key], issue[key], dram[key] >text
  }
  printf "\n ]\n}\n"
  exit n == 0
}' "$work/all.csv" >"$out/wkv4-occupancy.json" || exit 1
cat "$out/wkv4-occupancy.txt"
