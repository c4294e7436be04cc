#!/bin/bash
# Training with a binary16 WKV state against training with an f32 one, and the losses of a model under
# both at several context lengths (docs/fp16-state.md).
#
#   state_training.sh TEXTS VOCABULARY OUT PART...
#
# Parts, each for itself, so that they can be spread over several calls with the same OUT:
#   VARIANT   100M tokens of books (six passes, 3072 steps of 64 x 512, recipe of configs/books.json)
#             with --wkv VARIANT, all with the same initial values and data order: OUT/VARIANT.jsonl.
#             For the comparison: fp16-dithered, chunk, serial
#   compare   means of the loss over windows of 32 steps (1,048,576 tokens) of every VARIANT.jsonl of
#             OUT against the first of serial, chunk that is there: OUT/windows.tsv, and a line each;
#             OUT/windows.gp draws OUT/windows.png (at once where gnuplot is installed)
#   table     64M tokens of the same text in 8 x 4096, then rwkv-eval wkv-compare on books_test at
#             512 to 16384 tokens: OUT/wkv-compare.json, and .gp for gnuplot
#   table-VARIANT  the same after a training with --wkv VARIANT: OUT/wkv-compare-VARIANT.json
#
# TEXTS holds books_train, books_valid and books_test as .jsonl or .jsonl.xz. Programs are taken from BIN
# (default: this folder), run on DEVICE (default cuda); token files and checkpoints go to WORK (default:
# a new folder in /tmp, removed at the end). STEPS overrides the number of steps of every training, and
# TRAIN_OPTIONS holds further options of rwkv-train. With TOKENIZER=bytes the text is taken as bytes
# (VOCABULARY is not looked at): 100M tokens are one and a half passes then, not six.
# Exit code: 0 done, 2 wrong usage, else that of the program that failed.
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,25s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
texts=$1
vocabulary=$2
out=$3
shift 3
# shellcheck source-path=SCRIPTDIR source=texts.sh
. "$here/texts.sh"
read -ra options <<<"${TRAIN_OPTIONS:-}"
if [ "$tokenizer" = bytes ]; then options+=(--set model.vocab_size=257); fi

# train NAME [OPTIONS]: into WORK/NAME, its log to OUT/NAME.jsonl.
train() {
  local name=$1
  shift
  tokens train
  tokens valid
  rm -rf "${WORK:?}/$name"
  "$folder/rwkv-train" --config "$config" --device "$device" --set "data.train=$WORK/train$kind.h5" \
    --set "data.valid=$WORK/valid$kind.h5" --set "checkpoint.dir=$WORK/$name" --set log.print_every=256 \
    --set checkpoint.every=0 --set checkpoint.keep_every=0 "$@" "${options[@]}"
  cp "$WORK/$name/log.jsonl" "$out/$name.jsonl"
  say "trained $name: $(tail -n 1 "$out/$name.jsonl")"
}

# windows NAME: mean loss of every 32 steps, one per line.
windows() {
  sed -n 's/^.*"step":\([0-9]*\),.*"loss":\([0-9.]*\).*$/\1 \2/p' "$out/$1.jsonl" |
    awk '{ sum += $2; if ($1 % 32 == 0) { printf "%.6f\n", sum / 32; sum = 0 } }'
}

compare() {
  local base name
  for base in serial chunk; do
    if [ -f "$out/$base.jsonl" ]; then break; fi
  done
  windows "$base" >"$WORK/base"
  : >"$out/windows.tsv"
  for log in "$out"/*.jsonl; do
    name=$(basename "$log" .jsonl)
    if [ "$name" = "$base" ] || [[ $name = long* ]]; then continue; fi
    windows "$name" | paste "$WORK/base" - >"$WORK/pair"
    awk -v name="$name" -v base="$base" -v OFS='\t' '{ print base, name, NR, $1, $2, $2 - $1 }' \
      "$WORK/pair" >>"$out/windows.tsv"
    say "$(awk -v name="$name" -v base="$base" '
      NF != 2 { print name " and " base " have different numbers of windows"; exit 1 }
      { d = $2 - $1; sum += d; if (d < 0) d = -d; if (d > worst) { worst = d; at = NR } }
      END { printf "%s against %s: %d windows of 1048576 tokens, mean difference %.5f, largest %.5f (window %d)",
            name, base, NR, sum / NR, worst, at }' "$WORK/pair")"
  done
  draw "$base"
}

# draw BASE: OUT/windows.gp, and OUT/windows.png where gnuplot is installed.
draw() {
  local base=$1 name loss="" difference="" rows
  while read -r name; do
    rows="'$out/windows.tsv' using (stringcolumn(2) eq '$name' ? column(3) : 1/0)"
    loss+="$rows:5 with lines title '$name', "
    difference+="$rows:6 with lines title '$name', "
  done < <(cut -f 2 "$out/windows.tsv" | sort -u)
  cat >"$out/windows.gp" <<EOF
set terminal pngcairo size 900,620 font ',10'
set output '$out/windows.png'
set grid
set multiplot layout 2,1
set ylabel 'training loss, nats per token'
plot $loss '$out/windows.tsv' using 3:4 smooth unique dashtype 2 title '$base'
set xlabel 'window of 1048576 tokens'
set ylabel 'difference from $base'
set xzeroaxis lw 2
plot $difference 0.005 with lines dashtype 2 lc 'gray' notitle, -0.005 with lines dashtype 2 lc 'gray' notitle
EOF
  if ! command -v gnuplot >/dev/null; then return 0; fi
  gnuplot "$out/windows.gp"
  # gnuplot ends well also when the disk is full. What follows IEND is a checksum.
  if [ "$(tail -c 8 "$out/windows.png" | head -c 4)" != IEND ]; then
    rm -f "$out/windows.png"
    echo "state_training.sh: the picture $out/windows.png was cut off; is the disk full?" >&2
    exit 3
  fi
}

# table SUFFIX [OPTIONS]
table() {
  local suffix=$1
  shift
  tokens test
  train "long$suffix" --set train.context=4096 --set train.batch=8 \
    --set "train.steps=${STEPS:-2048}" "$@"
  "$folder/rwkv-eval" wkv-compare "$WORK/test$kind.h5" --model "$WORK/long$suffix" \
    --device "$device" --batch-tokens 65536 --json-file "$out/wkv-compare$suffix.json" \
    --plot "$out/wkv-compare$suffix.gp" --ctx 512 1024 2048 4096 8192 16384 |
    tee -a "$out/summary.txt"
}

for part in "$@"; do
  case $part in
    compare) compare ;;
    table) table "" ;;
    table-*) table "-${part#table-}" --wkv "${part#table-}" ;;
    *) train "$part" --wkv "$part" --set "train.steps=${STEPS:-3072}" --set eval.every=0 ;;
  esac
done
say "done"
