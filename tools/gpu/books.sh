#!/bin/bash
# The books recipe from text to figures: token files, training, evaluation, a sample.
#
#   books.sh TEXTS VOCABULARY OUT [rwkv-train options]
#
# TEXTS holds books_train, books_valid and books_test as .jsonl or .jsonl.xz, and, if they are to be
# evaluated too, wikitext2_test.txt and lambada_test.jsonl. Programs are taken from BIN (default:
# this folder, as pack.sh makes it), run on DEVICE (default cuda), checkpoints go to WORK (default: a
# new folder in /tmp, 12 GB; removed at the end). OUT receives log.jsonl, eval_*.json, sample.txt and
# summary.txt.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
texts=$1
vocabulary=$2
out=$3
shift 3
# shellcheck source-path=SCRIPTDIR source=texts.sh
. "$here/texts.sh"

for part in train valid test; do tokens $part; done
say "tokens ready"

"$folder/rwkv-train" --config "$config" --device "$device" --set "data.train=$WORK/train.h5" \
  --set "data.valid=$WORK/valid.h5" --set "checkpoint.dir=$WORK/run" --set log.print_every=64 "$@"
cp "$WORK/run/log.jsonl" "$out/"
say "trained"

# The checkpoint with the lowest validation loss of those that were kept.
best=
while read -r step loss; do
  file=$(printf '%s/run/step_%08d.h5' "$WORK" "$step")
  if [ -z "$best" ] && [ -f "$file" ]; then
    best=$file
    say "best checkpoint: step $step, validation loss $loss"
  fi
done < <(sed -n 's/.*"step":\([0-9]*\),.*"valid_loss":\([0-9.]*\).*/\1 \2/p' "$out/log.jsonl" |
  sort -k 2,2g)
if [ -z "$best" ]; then
  best=$WORK/run
  say "no validation loss belongs to a checkpoint: taking the newest"
fi

evaluate() {
  local name=$1
  shift
  "$folder/rwkv-eval" "$@" --model "$best" --device "$device" --json >"$out/eval_$name.json"
  say "$name: $(cat "$out/eval_$name.json")"
}
evaluate books_test_ctx512 loss "$WORK/test.h5" --ctx 512
evaluate books_test_ctx1024 loss "$WORK/test.h5" --ctx 1024
if [ -f "$texts/wikitext2_test.txt" ]; then
  evaluate wikitext2_test loss "$texts/wikitext2_test.txt" --text --ctx 1024
fi
if [ -f "$texts/lambada_test.jsonl" ]; then
  evaluate lambada lambada "$texts/lambada_test.jsonl" --batch 64
fi
"$folder/rwkv-generate" --model "$best" --device "$device" --prompt $'# Chapter I\n\n' --echo \
  --max-tokens 300 --top-p 0.8 --seed 1 --no-stream --stats >"$out/sample.txt"
say "all done"
cat "$out/sample.txt"
