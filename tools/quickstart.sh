#!/bin/bash
# From nothing to a trained model: installs missing packages, builds the four programs it uses,
# makes a corpus of small tasks, trains a byte-level RWKV-7 on it, measures exact-match accuracy on
# problems it has never seen, draws the loss curve and generates from prompts. CPU only.
#
#   quickstart.sh [--dir DIR] [--prefix DIR] [--threads N] [--set KEY=VALUE]...
#     --dir DIR        folder for everything that is made (default: runs/quickstart, or
#                      runs/quickstart-2, -3, ... if that is there). An existing DIR is continued:
#                      what is complete is kept, an interrupted training is resumed.
#     --prefix DIR     use the programs installed in DIR/bin and build nothing; the default for the
#                      copy of this script in an installed prefix
#     --threads N      threads to use (default: all)
#     --set KEY=VALUE  changes the training configuration, as for rwkv-train
#
# Exit code: 0 done, 2 wrong usage, 3 packages or files are missing, else that of what failed.
set -euo pipefail

usage() {
  sed -n '2,16s/^# \{0,1\}//p' "$0"
}
fail() {
  echo "quickstart.sh: $1" >&2
  exit "${2:-2}"
}

here=$(cd "$(dirname "$0")" && pwd)
source_dir=
prefix=
run_dir=
threads=()
settings=()
while [ $# -gt 0 ]; do
  case $1 in
    --dir | --prefix | --threads | --set)
      if [ $# -lt 2 ]; then fail "$1 needs a value"; fi
      case $1 in
        --dir) run_dir=$2 ;;
        --prefix) prefix=$2 ;;
        --threads)
          case $2 in
            '' | *[!0-9]*) fail "--threads: found '$2', expected a number; 0 is all cores" ;;
          esac
          threads=(--threads "$2")
          ;;
        --set) settings+=(--set "$2") ;;
      esac
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown argument '$1'; see --help" ;;
  esac
  shift
done

# In a source tree this script lies in tools/, in a prefix in share/greylag/.
if [ -f "$here/../CMakeLists.txt" ]; then source_dir=$(cd "$here/.." && pwd); fi
if [ -z "$prefix" ] && [ -z "$source_dir" ]; then prefix=$here/../..; fi
if [ -n "$prefix" ]; then
  if ! prefix=$(cd "$prefix" 2>/dev/null && pwd); then fail "--prefix: there is no such folder" 3; fi
  if [ ! -x "$prefix/bin/rwkv-train" ]; then
    fail "there is no $prefix/bin/rwkv-train; was 'cmake --install BUILD --prefix $prefix' run?" 3
  fi
fi

started=$SECONDS
step_number=0
step() {
  step_number=$((step_number + 1))
  printf '\n== %d/7 %s (%d s since the start)\n' $step_number "$*" $((SECONDS - started))
}
report_exit() {
  local rc=$?
  if [ $rc -ne 0 ]; then
    echo "quickstart.sh: stopped in step $step_number, exit code $rc; the messages above say why" >&2
  fi
}
trap report_exit EXIT
# rwkv-train ends orderly when interrupted, with a checkpoint; the steps after it must not run.
trap 'exit 130' INT TERM

if [ -z "$run_dir" ]; then
  run_dir=runs/quickstart
  if [ -n "$source_dir" ]; then run_dir=$source_dir/$run_dir; fi
  number=2
  base=$run_dir
  while [ -e "$run_dir" ]; do
    run_dir=$base-$number
    number=$((number + 1))
  done
fi
mkdir -p "$run_dir" 2>/dev/null ||
  fail "the folder $run_dir cannot be made; is there a file of that name, or no right to write?" 3
run_dir=$(cd "$run_dir" && pwd)

step "packages and programs"
if [ -n "$prefix" ]; then
  bin=$prefix/bin
  echo "using the programs in $bin"
  plot=1
  "$here/install_deps.sh" plot || plot=0
else
  "$here/install_deps.sh" build plot
  plot=1
  build=$source_dir/build-quickstart
  export CCACHE_BASEDIR=$source_dir
  bin=$build/bin
  cmake -S "$source_dir" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DRWKV_CUDA=OFF \
    -DRWKV_BUILD_TESTS=OFF -DRWKV_BUILD_BENCH=OFF
  cmake --build "$build" --target rwkv-data rwkv-train rwkv-eval rwkv-generate
fi

step "corpus of tasks, in $run_dir/data"
data=$run_dir/data
if [ -f "$data/complete" ]; then
  echo "is there already"
else
  mkdir -p "$data"
  "$bin/rwkv-data" make-tasks --output "$data/train.h5" --valid "$data/valid.h5" \
    --problems "$data/heldout.jsonl" --per-task 250
  touch "$data/complete"
fi

step "training (configs/quickstart.json), in $run_dir"
"$bin/rwkv-train" --config quickstart --resume --set "data.train=$data/train.h5" \
  --set "data.valid=$data/valid.h5" --set "checkpoint.dir=$run_dir" "${settings[@]}" \
  "${threads[@]}"

step "accuracy on problems that were not trained, by generation from the checkpoint"
"$bin/rwkv-eval" tasks --model "$run_dir" "$data/heldout.jsonl" "${threads[@]}" |
  tee "$run_dir/accuracy.txt"

step "loss curve"
if [ $plot -eq 1 ]; then
  "$here/plot_metrics.sh" --output "$run_dir/curves.png" "$run_dir"
else
  echo "left out: gnuplot is missing"
fi

step "generation: the first held-out problem of each task"
# Lines {"task":"reverse","prompt":"R0471=","answer":"1740"}
awk -F'"' '!($4 in seen) { seen[$4] = 1; print $8; print $12 }' "$data/heldout.jsonl" |
  while IFS= read -r prompt && IFS= read -r answer; do
    text=$("$bin/rwkv-generate" --model "$run_dir" --prompt "$prompt" --temperature 0 \
      --stop $'\n' --max-tokens 64 "${threads[@]}" </dev/null)
    printf '%-32s model: %-12s answer: %s\n' "$prompt" "$text" "$answer"
  done

step "done"
cat <<DONE
corpus      $data
checkpoints $run_dir
log         $run_dir/log.jsonl
accuracy    $run_dir/accuracy.txt
DONE
if [ $plot -eq 1 ]; then echo "curves      $run_dir/curves.png"; fi
printf 'try         %s\n' "$bin/rwkv-generate --model $run_dir --stop \$'\\n' --prompt R271828="
