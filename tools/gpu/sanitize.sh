#!/bin/bash
# On a GPU machine: compute-sanitizer over small shapes of the GPU test programs, one line for each
# tool and program.
#
#   sanitize.sh [TOOL...]       default: memcheck racecheck synccheck initcheck
#
# Every op in both types, every WKV variant with tails, segments and all gradient modes, and whole
# training steps, side by side. Takes two to three minutes. Programs are taken from BIN (default: this folder);
# outputs go to $JOBOUT if it is set, else to a temporary folder.
# Exit code: 0 clean, 1 errors were found or a test failed, 2 wrong usage.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "${BIN:-$here}" && pwd) || exit 2
# shellcheck source-path=SCRIPTDIR source=unpack.sh
. "$here/unpack.sh"
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ ! -x "$sanitizer" ]; then
  echo "sanitize.sh: compute-sanitizer is missing; it comes with the CUDA toolkit" >&2
  exit 2
fi
tools=("$@")
if [ ${#tools[@]} -eq 0 ]; then tools=(memcheck racecheck synccheck initcheck); fi
logs=${JOBOUT:-$(mktemp -d)}
export LD_LIBRARY_PATH=$folder/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
# Some run side by side, and their host threads mostly wait.
export OMP_WAIT_POLICY=passive RWKV_NUM_THREADS=${RWKV_NUM_THREADS:-4}

# Program and the tests that go through everything once.
programs=(
  'cuda_op_test Case/CudaOps.MatchReferenceWritingAndAdding/*:One/CudaExtra.*'
  'cuda_wkv7_test Device/Wkv7Variant.GradientModes/*:Device/Wkv7Variant.StepsInPlaceEqualForward/*'
  'cuda_wkv4_test Device/Wkv4Variant.GradientModes/*:Device/Wkv4Variant.StepsInPlaceEqualForward/*'
  'cuda_train_step_test Types/CudaStep.SmallStepsLearn/*'
)
for entry in "${programs[@]}"; do
  if [ ! -x "$folder/${entry%% *}" ]; then
    echo "sanitize.sh: there is no ${entry%% *} in $folder" >&2
    exit 2
  fi
done

# racecheck slows kernels down most, and under it some bf16 products of cuBLASLt stop with a hardware
# exception that the tool cannot place (CUDA 13.0), although it is told to leave them alone and
# memcheck finds them clean: what calls such products is looked at in f32.
smaller() {
  case $1 in
    cuda_op_test) echo 'Case/CudaOps.Match*:-*/linear*bf16:*/low_rank*bf16:*/feed_forward*bf16' ;;
    # The serial kernels take longest (110 s); bf16 and f32 are one template.
    cuda_wkv7_test) echo 'Device/Wkv7Variant.GradientModes/*:-*serial_f32' ;;
    cuda_wkv4_test) echo 'Device/Wkv4Variant.GradientModes/*' ;;
    cuda_train_step_test) echo 'Types/CudaStep.SmallStepsLearn/f32' ;;
  esac
}

# sanitize TOOL PROGRAM FILTER: writes TOOL.PROGRAM.log and .rc (exit code and seconds).
sanitize() {
  local begin=$SECONDS rc only=(--kernel-name kernel_substring=rwkv)
  # memcheck sees the products of cuBLASLt, too; the others look at our kernels.
  if [ "$1" = memcheck ]; then only=(); fi
  "$sanitizer" --tool "$1" "${only[@]}" --error-exitcode 9 --print-limit 20 "$folder/$2" \
    --gtest_filter="$3" >"$logs/$1.$2.log" 2>&1
  rc=$?
  echo "$rc $((SECONDS - begin))" >"$logs/$1.$2.rc"
}

failed=0
started=$SECONDS
for tool in "${tools[@]}"; do
  for entry in "${programs[@]}"; do
    read -r name filter <<<"$entry"
    if [ "$tool" = racecheck ]; then filter=$(smaller "$name"); fi
    sanitize "$tool" "$name" "$filter" &
  done
done
wait
for tool in "${tools[@]}"; do
  for entry in "${programs[@]}"; do
    name=${entry%% *}
    log=$logs/$tool.$name.log
    read -r rc seconds <"$logs/$tool.$name.rc"
    passed=$(awk '/^\[  PASSED  \]/ { print $4 }' "$log")
    summary=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//')
    verdict=ok
    if [ "$rc" -ne 0 ] || [ -z "$summary" ] || [ "${passed:-0}" -eq 0 ]; then verdict=FAILED; fi
    printf '%-7s %-10s %-22s %s tests passed, %s, %d s\n' "$verdict" "$tool" "$name" "${passed:-0}" \
      "${summary:-no summary (exit code $rc)}" "$seconds"
    if [ $verdict != ok ]; then
      failed=$((failed + 1))
      grep -vE '^\[ (RUN|      OK) ' "$log" | head -n 60
    fi
  done
done
printf 'sanitize: %d tools, %d failures, %d s\n' ${#tools[@]} "$failed" $((SECONDS - started))
[ "$failed" -eq 0 ]
