#!/bin/bash
# On a GPU machine: the benchmark tables, each printed and written as OUT/NAME.txt and, as a record
# with commit, device, kernel hash and the rates measured in the same run, OUT/NAME.json.
#
#   bench.sh [OUT [PART...]]      OUT: default $JOBOUT, else ./records; parts: default all (2 min)
#     wkv      WKV-7 variants at the sizes they are judged by, bf16 (15 s)
#     step     whole training steps of L12-D768 V50304, and of L24-D2048 V65536 (60 s)
#     ops      every op at 8 x 4096 tokens of width 768 (6 s)
#     lengths  WKV-7 against sequence length, for few and many heads (15 s); a picture:
#              rwkv-bench wkv --from OUT/wkv-lengths.json --plot wkv.png
#     streams  one pass over whole sequences against segments of them, around the number of
#              sequences x heads where one overtakes the other (5 s)
#     heads    WKV-7 with heads of 128 and 32, and in f32 (10 s)
#
# Programs are taken from BIN (default: this folder). A table that fails or takes more than 90 s does
# not stop the others. Exit code: 0, 1 if a table failed, 2 wrong usage.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${BIN:-$here}
# shellcheck source-path=SCRIPTDIR source=unpack.sh
. "$here/unpack.sh"
export LD_LIBRARY_PATH=$folder/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
out=${1:-${JOBOUT:-records}}
if [ $# -gt 0 ]; then shift; fi
parts=("$@")
if [ ${#parts[@]} -eq 0 ]; then parts=(wkv step ops lengths streams heads); fi
mkdir -p "$out" || exit 1

failed=0
# bench NAME SUBCOMMAND ARGUMENTS...
bench() {
  local name=$1 started=$SECONDS
  shift
  echo "== $name: rwkv-bench $*"
  timeout -k 5 90 "$folder/rwkv-bench" "$@" --device cuda --json "$out/$name.json" 2>&1 | tee "$out/$name.txt"
  if [ "${PIPESTATUS[0]}" -ne 0 ]; then
    echo "== $name: FAILED"
    failed=1
  fi
  echo "== $name: $((SECONDS - started)) s"
}

for part in "${parts[@]}"; do
  case $part in
    wkv) bench wkv wkv --seconds 0.5 ;;
    lengths)
      bench wkv-lengths wkv --seconds 0.1 --repeats 10 --lengths 1:131072 --shape 1,1,12,64 \
        --shape 8,1,12,64
      ;;
    streams)
      shapes=()
      for tokens in 192 256 512 1024 4096; do
        for batch in 1 4 8 11 16; do shapes+=(--shape "$batch,$tokens,12,64"); done
      done
      bench wkv-streams wkv --variant chunk --variant scan --seconds 0.1 "${shapes[@]}"
      ;;
    heads)
      bench wkv-heads wkv --seconds 0.1 --shape 8,4096,6,128 --shape 8,4096,24,32
      bench wkv-f32 wkv --seconds 0.1 --dtype f32 --shape 8,4096,12,64
      ;;
    ops) bench ops ops ;;
    step)
      for shape in 4096,30 4096,8 512,64 512,16 1024,2; do
        bench "step-${shape/,/x}" step --repeats 20 --tokens "${shape%,*}" --batch "${shape#*,}"
      done
      bench step-1.5b-4096x4 step --repeats 10 --layers 24 --width 2048 --vocab 65536 \
        --tokens 4096 --batch 4
      ;;
    *)
      echo "bench.sh: unknown part '$part'; see the head of this file" >&2
      exit 2
      ;;
  esac
done
exit $failed
