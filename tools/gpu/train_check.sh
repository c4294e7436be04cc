#!/bin/bash
# On a GPU machine, from the folder that holds .gpu/ (pack.sh): trains the quickstart model on the
# CPU and on the GPU, compares losses and checkpoints, then times training steps of L12-D768.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
train=$here/rwkv-train
failed=0

"$here/rwkv-data" make-tasks -o "$work/train.h5" --tokens 400000 --valid "$work/valid.h5" >/dev/null
settings=(--config "$here/configs/quickstart.json" --quiet --set "data.train=$work/train.h5"
  --set "data.valid=$work/valid.h5" --set train.steps=30 --set sample.every=0 --set eval.every=10)
run() {
  local name=$1
  shift
  "$train" "${settings[@]}" --set "checkpoint.dir=$work/$name" "$@" || failed=1
  printf '%-6s loss at steps 1, 2, 5, 10, 20, 30: ' "$name"
  grep -o '"loss":[0-9.]*' "$work/$name/log.jsonl" |
    awk -F: 'NR == 1 || NR == 2 || NR == 5 || NR == 10 || NR == 20 || NR == 30 { printf "%.6f ", $2 }'
  echo
}
run cpu
run f32 --device cuda --set kernels.dtype=f32
run again --device cuda --set kernels.dtype=f32
run bf16 --device cuda
run serial --device cuda --wkv serial
if cmp "$work/f32/step_00000030.h5" "$work/again/step_00000030.h5"; then
  echo "two f32 runs on the GPU are byte-equal"
else
  failed=1
fi

step() {
  echo "== L12-D768 V50304, context $1 x batch $2"
  "$train" --config "$here/configs/pile169m.json" --smoke --device cuda --set train.micro_batches=1 \
    --set train.loss_chunk_tokens=0 --set train.grad_checkpointing=none --set "train.context=$1" \
    --set "train.batch=$2" --set "train.steps=$3" | tail -n 1
}
step 1024 2 100
step 512 16 100
step 512 64 40
step 4096 8 20
step 4096 30 10
exit $failed
