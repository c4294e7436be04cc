#!/bin/bash
# On a machine with several GPUs: the tests of ranks, one rank per GPU over NCCL, then
# rwkv-bench scale for 12 layers of 768 at 4096 x 8 and 512 x 16, 1.5B and 7.2B. Run from the
# unpacked archive of pack.sh:
#   dist.sh [RANKS]     default: 2
# Logs and records go to $JOBOUT, or a temporary folder. Exit code: 0 if all tests passed.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "${BIN:-$here}" && pwd) || exit 2
# shellcheck source-path=SCRIPTDIR source=unpack.sh
. "$here/unpack.sh"

ranks=${1:-2}
logs=${JOBOUT:-$(mktemp -d)}
export LD_LIBRARY_PATH=$folder/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
export NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-0}"

pids=()
for ((rank = 0; rank < ranks; ++rank)); do
  RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$ranks MASTER_ADDR=127.0.0.1 MASTER_PORT=29455 \
    timeout 300 "$folder/cuda_dist_step_test" >"$logs/rank$rank.log" 2>&1 &
  pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
grep -E 'ranks,|PASSED|FAILED|Failure' "$logs/rank0.log"
if [ -x "$folder/cuda_dist_link_test" ]; then
  timeout 100 "$folder/cuda_dist_link_test" >"$logs/link.log" 2>&1 || failed=1
  grep -E 'PASSED|FAILED|Failure|error:' "$logs/link.log"
fi
scale=("$folder/rwkv-bench" scale --gpus "$ranks")
"${scale[@]}" --zero 1 --zero 0 --collectives --repeats 50 --json "$logs/scale.json" \
  --trace "$logs/trace.json" --trace-svg "$logs/trace.svg" || failed=1
"${scale[@]}" --model 1.5B --shape 4096x4 --json "$logs/scale-1b5.json" || failed=1
"${scale[@]}" --model 7.2B --shape 4096x2 --zero 2 --no-alone --grad-checkpointing auto \
  --repeats 8 --json "$logs/scale-7b2.json" || failed=1
exit "$failed"
