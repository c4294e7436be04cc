#!/bin/bash
# On a machine with several GPUs: what becomes of rwkv-train on two of them when a rank is killed or
# stopped, all are told to end, or a link breaks; and whether resumed runs go on as if nothing had
# been. Run from the unpacked archive of pack.sh:
#   dist_faults.sh [TOKENS]     TOKENS: a token file of bytes; default: made from these scripts
# Logs go to $JOBOUT, or a temporary folder. Exit code: 0 if everything was as expected.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "${BIN:-$here}" && pwd) || exit 2
# shellcheck source-path=SCRIPTDIR source=unpack.sh
. "$here/unpack.sh"
logs=${JOBOUT:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LD_LIBRARY_PATH=$folder/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
export NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-0}" RWKV_CACHE_DIR=$work/cache
tokens=${1:-}
if [ -z "$tokens" ]; then
  tokens=$work/train.h5
  "$folder/rwkv-data" tokenize --format text --tokenizer bytes -o "$tokens" "$here"/*.sh || exit 2
fi
tokens=$(cd "$(dirname "$tokens")" && pwd)/$(basename "$tokens")
cd "$work" || exit 2

failed=0
say() { printf '%5.1f s  %s\n' "$(awk -v ns=$(($(date +%s%N) - started)) 'BEGIN { print ns / 1e9 }')" "$*"; }
check() { # check WORDS CONDITION...: runs the condition
  local words=$1
  shift
  if "$@"; then say "ok      $words"; else say "FAILED  $words"; failed=1; fi
}
started=$(date +%s%N)

train() { # train RUN BATCH STEPS WORDS...
  local run=$1 batch=$2 steps=$3
  shift 3
  exec "$folder/rwkv-train" --device cuda --config "$work/config.json" --set "checkpoint.dir=$run" \
    --set "train.batch=$batch" --set "train.steps=$steps" "$@"
}
cat >config.json <<JSON
{"model": {"n_layer": 4, "n_embd": 256, "vocab_size": 257},
 "data": {"train": "$tokens", "sampler": "shuffle"},
 "train": {"context": 512, "exit_tokens": 800000000},
 "checkpoint": {"every": 50}, "log": {"print_every": 100000}, "optimizer": {"lr": 1e-3}}
JSON
long=100000

wait_for_steps() { # wait_for_steps RUN LINES PID: no longer than the process lives
  for ((i = 0; i < 3000; ++i)); do
    [ -f "$1/log.jsonl" ] && [ "$(wc -l <"$1/log.jsonl")" -ge "$2" ] && return 0
    kill -0 "$3" 2>/dev/null || break
    sleep 0.01
  done
  echo "no $2 lines in the log of $1 after 30 s, or when its process ended"
  return 1
}
steps_of() { # steps_of RUN: "STEP LOSS" of the log
  sed -nE 's/.*"type":"step","step":([0-9]+),.*"loss":([-0-9.e]+),.*/\1 \2/p' "$1/log.jsonl"
}
last_checkpoint() { find "$1" -name 'step_*.h5' | sort | tail -n 1 | sed -E 's/.*step_0*([0-9]+)\.h5/\1/'; }
memory() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | paste -sd' '; }
# shellcheck disable=SC2317  # check() calls it
near() { # near LIMIT FILE FILE: the same steps, losses within the limit
  paste "$2" "$3" | awk -v limit="$1" '
    $1 != $3 { bad = 1 }
    { d = $2 - $4; if (d < 0) d = -d; if (d > most) most = d; ++n }
    END { printf "        %d steps, largest difference of a loss %g\n", n, most
          exit (bad || n == 0 || most > limit) }'
}
ranks_of() { pgrep -P "$1" | sort -n; } # of a parent, in the order in which it started them
# end_of PID CODE SECONDS WORDS...: it ends soon with that code
end_of() {
  local pid=$1 code=$2 seconds=$3 begin rc took
  shift 3
  begin=$(date +%s%N)
  for ((i = 0; i < 6000; ++i)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.01
  done
  took=$(awk -v ns=$(($(date +%s%N) - begin)) 'BEGIN { printf "%.2f", ns / 1e9 }')
  wait "$pid"
  rc=$?
  check "$*: exit code $rc (expected $code) after $took s" \
    awk -v a="$rc" -v b="$code" -v t="$took" -v most="$seconds" 'BEGIN { exit !(a == b && t < most) }'
}

before=$(memory)
# SIGKILL of rank 1, then of rank 0 in another run.
for victim in 1 0; do
  run=killed$victim
  train $run 8 $long --gpus 2 >$run.out 2>$run.err &
  parent=$!
  wait_for_steps $run 120 $parent || { failed=1; cat $run.err; }
  kill -KILL "$(ranks_of $parent | sed -n "$((victim + 1))p")"
  end_of $parent 4 10 "rank $victim killed"
  check "  it is named" grep -q "rank $victim (" $run.err
  cat $run.err
  check "  nothing was done after it: last checkpoint $(last_checkpoint $run), of each 50th step" \
    test $(($(last_checkpoint $run) % 50)) = 0
  check "  no step was not finite" bash -c "! grep -q 'not finite' $run.out"
done
# And while ranks and NCCL start.
train starting 8 $long --gpus 2 >starting.out 2>starting.err &
parent=$!
sleep 1
kill -KILL "$(ranks_of $parent | tail -n 1)"
end_of $parent 4 10 "rank 1 killed a second after the start"
cat starting.err
check "  no memory is held on the GPUs: $(memory) MiB, before: $before" \
  test "$(memory | awk '{ print ($1 + $2) }')" -le "$(echo "$before" | awk '{ print ($1 + $2 + 64) }')"

# Resumed on two, on one, and a run without a fault; all at once.
last=$(last_checkpoint killed1)
goal=$((last + 30))
say "the last checkpoint is of step $last, the log ends at $(steps_of killed1 | tail -n 1)"
cp -r killed1 one
train killed1 8 $goal --gpus 2 --resume >two.out 2>two.err &
others=($!)
train one 16 $goal --resume >one.out 2>one.err &
others+=($!)
train whole 8 $goal --gpus 2 >whole.out 2>whole.err &
others+=($!)
# SIGTERM to all ranks and their parent.
train told 8 $long --gpus 2 >told.out 2>told.err &
parent=$!
wait_for_steps told 60 $parent || { failed=1; cat told.err; }
# shellcheck disable=SC2046  # several numbers
kill -TERM $(ranks_of $parent) $parent
end_of $parent 0 10 "all told to end (SIGTERM)"
check "  a checkpoint of the last step is there" \
  test "$(last_checkpoint told)" = "$(steps_of told | tail -n 1 | cut -d' ' -f1)"
for pid in "${others[@]}"; do
  wait "$pid" || { failed=1; say "FAILED  a resumed or whole run"; cat two.err one.err whole.err; }
done
steps_of killed1 >killed1.steps
steps_of one >one.steps
steps_of whole >whole.steps
check "resumed on two GPUs: the losses of the run without a fault in every digit" \
  cmp killed1.steps whole.steps
check "resumed on one GPU: near it" near 4e-2 one.steps whole.steps

# A rank that is stopped, not dead; a killed rank under mpirun; a broken link. All at once.
for rank in 0 1; do
  RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29471 \
    RWKV_SILENCE_SECONDS=3 train stopped 8 $long >stopped$rank.out 2>stopped$rank.err &
  stopped[rank]=$!
done
if command -v mpirun >/dev/null; then
  # shellcheck disable=SC2016  # the ranks' shells expand it
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -n 2 bash -c \
    'echo $$ >mpi.$OMPI_COMM_WORLD_RANK; exec "$@"' sh "$folder/rwkv-train" --device cuda --config \
    config.json --set checkpoint.dir=mpi --set train.batch=8 --set train.steps=$long >mpi.out 2>mpi.err &
  mpi=$!
fi
if [ -x "$folder/cuda_dist_link_test" ]; then
  timeout 60 "$folder/cuda_dist_link_test" >link.out 2>&1 &
  link=$!
fi
wait_for_steps stopped 20 "${stopped[0]}" || { failed=1; cat stopped*.err; }
kill -STOP "${stopped[1]}"
end_of "${stopped[0]}" 4 15 "rank 1 stopped, silence of 3 s"
check "  it is named" grep -q "rank 1 (.*no sign of life" stopped0.err
cat stopped0.err
kill -KILL "${stopped[1]}"
if [ -n "${mpi:-}" ] && ! steps=$(wait_for_steps mpi 20 "$mpi") && grep -q 'has no MPI' mpi.err; then
  say "skipped: this build has no MPI (a rank killed under mpirun)"
elif [ -n "${mpi:-}" ]; then
  [ -z "$steps" ] || { failed=1; echo "$steps"; cat mpi.err; }
  kill -KILL "$(cat mpi.1)"
  begin=$(date +%s%N)
  wait "$mpi"
  check "rank 1 killed under mpirun: exit code $? after $((($(date +%s%N) - begin) / 1000000)) ms" \
    grep -q "signal 9" mpi.err
fi
if [ -n "${link:-}" ]; then
  wait "$link"
  check "a link breaks: $(grep -hE 'error:|SKIPPED' link.out | head -n 2)" grep -q 'OK \]' link.out
fi
wait
sleep 1
check "no memory is held on the GPUs: $(memory) MiB, before: $before" \
  test "$(memory | awk '{ print ($1 + $2) }')" -le "$(echo "$before" | awk '{ print ($1 + $2 + 64) }')"
cp ./*.err ./*.out "$logs"
exit "$failed"
