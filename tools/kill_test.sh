#!/bin/sh
# Kill test: trains once undisturbed, then again with N SIGKILLs at random moments and --resume in
# between, and compares every dataset of the final checkpoints byte by byte.
#
#   tools/kill_test.sh N [rwkv-train [seed]]
#
# Every life writes a checkpoint at every step, so most kills hit the writing of one. A life lasts
# a random part of the time that its next steps take; when the run would end before N kills, it
# starts anew with the remaining ones.
set -eu
# The killed and the new process may overlap for a moment: do not let their threads spin.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

kills=${1:?usage: kill_test.sh N [rwkv-train [seed]]}
root=$(cd "$(dirname "$0")/.." && pwd)
train=${2:-$root/build/bin/rwkv-train}
seed=${3:-1}
steps=40
[ -x "$train" ] || { echo "kill_test: $train is no program; give its path as second argument" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/kill_test.XXXXXX")
pid=
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT
cat > "$work/tiny.json" <<JSON
{
  "model": {"n_layer": 3, "n_embd": 128, "vocab_size": 1000},
  "data": {"train": "synthetic", "valid": "synthetic", "sampler": "shuffle"},
  "train": {"context": 64, "batch": 2, "steps": $steps},
  "optimizer": {"lr": 1e-3, "warmup": 5},
  "eval": {"every": 7, "batches": 2},
  "checkpoint": {"every": 1, "keep_last": 2},
  "limits": {"peak_tflops": 1}
}
JSON
run() {  # FOLDER [--resume]
  folder=$1
  shift
  # exec: so that the process killed is the trainer itself
  exec "$train" --config "$work/tiny.json" --set "checkpoint.dir=$folder" "$@"
}
final=step_$(printf %08d "$steps").h5

# A small linear congruential generator: POSIX sh has no $RANDOM.
random() {  # MAX -> 0 .. MAX-1
  seed=$(( (seed * 1103515245 + 12345) % 2147483648 ))
  drawn=$(( seed / 65536 % $1 ))
}

echo "kill_test: undisturbed run of $steps steps"
start=$(date +%s%N)
( run "$work/whole" ) > "$work/whole.log" 2>&1 || { cat "$work/whole.log" >&2; exit 1; }
whole_ms=$(( ($(date +%s%N) - start) / 1000000 ))

done_kills=0
rounds=0
while [ "$done_kills" -lt "$kills" ]; do
  rounds=$((rounds + 1))
  rm -rf "$work/killed"
  finished=no
  while [ "$finished" = no ]; do
    ( run "$work/killed" --resume ) > "$work/killed.log" 2>&1 &
    pid=$!
    if [ "$done_kills" -lt "$kills" ]; then
      # From at once up to a third of the whole run: several kills fit into one run.
      random $(( whole_ms / 3 + 50 ))
      sleep "$(printf '%d.%03d' $((drawn / 1000)) $((drawn % 1000)))"
      if kill -9 "$pid" 2>/dev/null; then
        code=0
        wait "$pid" 2>/dev/null || code=$?  # the shell would report every kill
        pid=
        case $code in
          137) done_kills=$((done_kills + 1)) ;;  # killed while it ran
          0) finished=yes ;;                      # had just ended by itself
          *) echo "kill_test: a resumed run failed with exit code $code:" >&2
             cat "$work/killed.log" >&2
             exit 1 ;;
        esac
        continue
      fi
    fi
    code=0
    wait "$pid" || code=$?
    pid=
    if [ "$code" -ne 0 ]; then
      echo "kill_test: a resumed run failed with exit code $code:" >&2
      cat "$work/killed.log" >&2
      exit 1
    fi
    finished=yes
  done
  if ! cmp "$work/whole/$final" "$work/killed/$final"; then
    echo "kill_test: the run that was killed ended with another checkpoint" >&2
    exit 1
  fi
  for left in "$work"/killed/*.tmp; do
    [ ! -e "$left" ] || { echo "kill_test: $left was left behind" >&2; exit 1; }
  done
  # The log has every step once.
  logged=$(grep -c '"type":"step"' "$work/killed/log.jsonl")
  [ "$logged" -eq "$steps" ] || { echo "kill_test: $logged log lines for $steps steps" >&2; exit 1; }
done
echo "kill_test: passed: $done_kills kills in $rounds runs, every resume worked, all final checkpoints equal"
