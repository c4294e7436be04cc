#!/bin/bash
# Packs what a GPU machine without our packages needs into .gpu/ (ignored by git): stripped programs
# of a build folder, the shared libraries they want, the configs and the scripts beside this file.
#
#   tools/gpu/pack.sh BUILD_DIR [PROGRAM...]     default: rwkv-train rwkv-data wkv7_dev cuda_op_test
#
# Build for carrying with -DRWKV_CPU_ARCH=x86-64-v3. Over there:
#   LD_LIBRARY_PATH=$PWD/.gpu/lib:/usr/local/cuda/lib64 bash .gpu/train_check.sh
set -euo pipefail
if [ $# -lt 1 ] || [ ! -d "$1" ]; then
  echo "pack.sh: give the build folder; see the head of this file" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "$1" && pwd)
shift
programs=("$@")
if [ ${#programs[@]} -eq 0 ]; then programs=(rwkv-train rwkv-data wkv7_dev cuda_op_test); fi
to=$root/.gpu
mkdir -p "$to/lib" "$to/configs"
for name in "${programs[@]}"; do
  file=$(find "$build" -type f -name "$name" -perm -u+x | head -n 1)
  if [ -z "$file" ]; then
    echo "pack.sh: there is no program $name in $build; build it first" >&2
    exit 3
  fi
  strip -o "$to/$name" "$file"
  # The C and C++ run-time libraries and CUDA's are those of the other machine.
  ldd "$file" | awk '/=> \//{print $3}' |
    grep -vE '/lib(c|m|pthread|dl|rt|resolv|gcc_s|stdc\+\+|cublas|cublasLt|cudart)\.so' |
    while IFS= read -r library; do cp -Lf "$library" "$to/lib/"; done
done
cp "$root"/configs/*.json "$to/configs/"
cp "$root"/tools/gpu/*.sh "$to/"
du -sh "$to"
