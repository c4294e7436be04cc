#!/bin/sh
# Prints a SHA-256 over everything that decides what the GPU computes and how fast: the sources of
# kernels/core, kernels/cuda, kernels/ops and kernels/wkv, without those of the CPU and of how much
# memory a host has (machine_memory). Records of GPU measurements carry it as "kernel_hash";
# tools/lint/records.sh compares.
#
#   tools/kernel_hash.sh [ROOT]     ROOT: a source tree (default: the one of this script)
set -eu
cd "${1:-$(dirname "$0")/..}"
find kernels/core kernels/cuda kernels/ops kernels/wkv -type f \
  \( -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name '*.cpp' \) |
  grep -v -e '^kernels/wkv/cpu/' -e '_cpu\.cpp$' -e '_absent\.cpp$' -e '/machine_memory\.' | LC_ALL=C sort |
  while IFS= read -r file; do
    printf '%s  %s\n' "$(sha256sum <"$file" | cut -d ' ' -f 1)" "$file"
  done | sha256sum | cut -d ' ' -f 1
