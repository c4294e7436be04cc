#!/bin/bash
# On a GPU machine: the benchmark tables, each printed and written as OUT/NAME.txt and, as a record
# with commit, device, kernel hash and the rates measured in the same run, OUT/NAME.json.
#
#   bench.sh [OUT [PART...]]      OUT: default $JOBOUT, else ./records; parts: default those of RWKV-7
#     wkv      WKV-7 variants at the sizes they are judged by, bf16 (15 s)
#     step     whole training steps of L12-D768 V50304, and of L24-D2048 V65536 (60 s)
#     ops      every op at 8 x 4096 tokens of width 768 (6 s)
#     lengths  WKV-7 against sequence length, for few and many heads (15 s); a picture:
#              rwkv-bench wkv --from OUT/wkv-lengths.json --plot wkv.png
#     streams  one pass over whole sequences against segments of them, around the number of
#              sequences x heads where one overtakes the other (5 s)
#     heads    WKV-7 with heads of 128 and 32, and in f32 (10 s)
#     rwkv7    all of the above (2 min)
#     wkv4     WKV-4 against length, 2^6 to 2^19 tokens, batch 1 and 8, widths 32, 256, 768, f32 and bf16
#              (60 s)
#     step4    whole training steps of RWKV-4 L12-D768 V50277 (20 s)
#     times    train-times: the smoke training of RWKV-4 and RWKV-7 with every WKV variant, f32 and bf16
#              (60 s), and larger batches and contexts in bf16 (60 s)
#     occupancy  what the WKV-4 kernels keep busy, by ncu (occupancy.sh, 30 s)
#     rwkv4    wkv4, step4, times, occupancy (4 min)
#     decode   tokens per second of RWKV-7 0.1B, 1.5B, 7.2B, random weights: one sequence by both ways,
#              64, 320 and 960 at a time, and large batches for seconds, at the power limit (40 s)
#     prefill  prompts of 1024 and 4096 tokens, the same models (15 s)
#
# records.sh takes the records into the tree and draws their pictures.
# Programs are taken from BIN (default: this folder). A table that fails or takes more than 120 s
# does not stop the others. Exit code: 0, 1 if a table failed, 2 wrong usage.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "${BIN:-$here}" && pwd) || exit 2
# shellcheck source-path=SCRIPTDIR source=unpack.sh
. "$here/unpack.sh"
export LD_LIBRARY_PATH=$folder/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
out=${1:-${JOBOUT:-records}}
if [ $# -gt 0 ]; then shift; fi
parts=()
for part in "${@:-rwkv7}"; do
  case $part in
    rwkv7) parts+=(wkv step ops lengths streams heads) ;;
    rwkv4) parts+=(wkv4 times step4 occupancy) ;;
    *) parts+=("$part") ;;
  esac
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
# Presets are looked for in ./configs.
if [ -d "$folder/configs" ]; then cd "$folder" || exit 1; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

failed=0
# bench NAME SUBCOMMAND ARGUMENTS...
bench() {
  local name=$1 started=$SECONDS device=(--device cuda)
  shift
  case $1 in decode | prefill) device=() ;; esac  # there is no other
  echo "== $name: rwkv-bench $*"
  timeout -k 5 120 "$folder/rwkv-bench" "$@" "${device[@]}" --json "$out/$name.json" 2>&1 | tee "$out/$name.txt"
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
        for batch in 1 4 8 12 16 18; do shapes+=(--shape "$batch,$tokens,12,64"); done
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
    wkv4) bench wkv4 wkv --arch rwkv4 --seconds 0.05 --repeats 15 --limit 0.6 ;;
    step4)
      for shape in 1024,2 4096,8 4096,30; do
        bench "step-rwkv4-${shape/,/x}" step --arch rwkv4 --repeats 20 --tokens "${shape%,*}" \
          --batch "${shape#*,}"
      done
      bench step-rwkv4-f32-1024x2 step --arch rwkv4 --dtype f32 --repeats 20 --tokens 1024 --batch 2
      ;;
    times)
      # Tokens from a file, as in a real run; ids of bytes, as there is no Pile.
      data=()
      if "$folder/rwkv-data" make-tasks -o "$work/tasks.h5" --tokens 8000000; then
        data=(--set "data.train=$work/tasks.h5")
      fi
      bench train-times train-times "${data[@]}"
      bench train-times-large train-times "${data[@]}" --dtype bf16 --set train.steps=12 \
        --variant serial --variant scan --variant cumsum --variant chunk \
        --shape 16,1024 --shape 64,1024 --shape 16,4096
      ;;
    decode)
      # The largest model first: its batches reach the power limit, less of it on a cool card.
      bench decode-tokens decode --random 7.2B --random 1.5B --random 0.1B --batch 1 --batch 64 \
        --batch 320 --batch 960 --exact --repeats 9 --tokens 32
      bench decode-no-skip decode --random 0.1B --random 1.5B --random 7.2B --no-skip --repeats 9 \
        --tokens 32
      bench decode-sustained decode --random 7.2B --batch 320 --batch 960 --repeats 40 --tokens 64
      ;;
    prefill)
      bench prefill prefill --random 0.1B --random 1.5B --random 7.2B --tokens 1024 4096 --stages
      ;;
    occupancy)
      echo "== occupancy: occupancy.sh"
      bash "$here/occupancy.sh" "$out" || failed=1
      ;;
    *)
      echo "bench.sh: unknown part '$part'; see the head of this file" >&2
      exit 2
      ;;
  esac
done
exit $failed
