#!/bin/bash
# On a GPU machine with PyTorch, h5py and nvcc: the comparison with the reference trainer.
#
#   run.sh TRAIN_TEMP TOKENS.h5 OUT [RWKV_TRAIN]
#
# TRAIN_TEMP: RWKV-v7/train_temp of the reference's repository. OUT receives report.json, log.jsonl.
# RWKV_TRAIN is started with LD_LIBRARY_PATH=$RWKV_LIBRARIES if that is set.
set -uo pipefail
if [ $# -lt 3 ]; then
  echo "run.sh: give the reference's folder, the token file and a folder for results" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
reference=$(cd "$1" && pwd)
tokens=$(realpath "$2")
out=$(mkdir -p "$3" && cd "$3" && pwd)
train=${4:-rwkv-train}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 TORCH_EXTENSIONS_DIR=$work/extensions
run() { python3 "$here/fidelity.py" "$@" --reference "$reference" --work "$work"; }
failed() {
  echo "run.sh: $1 failed" >&2
  exit 1
}

# The compiler works on the CPUs, so our run can go beside it.
begin=$SECONDS
{
  run build
  code=$?
  echo "extensions: $((SECONDS - begin)) s"
  exit $code
} >"$work/build.log" 2>&1 &
building=$!
run prepare --tokens "$tokens" || failed "preparing"
echo "prepared: $((SECONDS - begin)) s"
LD_LIBRARY_PATH=${RWKV_LIBRARIES:-${LD_LIBRARY_PATH:-}} "$train" --config "$here/config.json" \
  --device cuda --init "$work/init.h5" --set "data.train=$tokens" \
  --set "checkpoint.dir=$work/run" --set log.print_every=50 || failed "rwkv-train"
cp "$work/run/log.jsonl" "$out/"
echo "ours: $((SECONDS - begin)) s"
wait $building || {
  cat "$work/build.log"
  failed "building the reference's extensions"
}
cat "$work/build.log"
run reference --name reference --kernel @rwkv3 >"$work/reference.log" 2>&1 &
first=$!
run reference --name control --kernel "" >"$work/control.log" 2>&1 &
second=$!
wait $first || {
  tail -n 40 "$work/reference.log"
  failed "the reference"
}
wait $second || {
  tail -n 40 "$work/control.log"
  failed "the reference with its other kernel"
}
tail -qn 1 "$work/reference.log" "$work/control.log"
echo "references: $((SECONDS - begin)) s"
run compare --log "$work/run/log.jsonl" --checkpoint "$(ls "$work"/run/step_*.h5)"
good=$?
cp "$work/report.json" "$out/"
echo "all: $((SECONDS - begin)) s"
exit $good
