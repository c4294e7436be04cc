#!/bin/bash
# Packs what a GPU machine without our packages needs into .gpu/ (ignored by git), under 64 MiB: all
# programs rwkv-*, all test programs of the ctest label "gpu" (cuda_*), the shared libraries they
# want, configs and the scripts beside this file. Programs and libraries are stripped
# and lie in one archive, which the scripts unpack.
#
#   tools/gpu/pack.sh BUILD_DIR [PROGRAM...]     default: every program that is built
#
# Build for carrying with -DRWKV_CPU_ARCH=x86-64-v3. See README.md in this folder for what runs there.
# Exit code: 0 done, 2 wrong usage, 3 a program is missing or the result is too large.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -d "$1" ]; then
  echo "pack.sh: give the build folder; see the head of this file" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "$1" && pwd)
shift
limit_mib=64

files=()
if [ $# -gt 0 ]; then
  for name in "$@"; do
    file=$(find "$build/bin" "$build/tests" -maxdepth 1 -type f -name "$name" -perm -u+x | head -n 1)
    if [ -z "$file" ]; then
      echo "pack.sh: there is no program $name in $build; build it first" >&2
      exit 3
    fi
    files+=("$file")
  done
else
  while IFS= read -r file; do files+=("$file"); done < <(
    find "$build/bin" "$build/tests" -maxdepth 1 -type f -perm -u+x \
      \( -path "$build/bin/rwkv-*" -o -path "$build/tests/cuda_*" \) | LC_ALL=C sort)
  if [ ${#files[@]} -eq 0 ]; then
    echo "pack.sh: no rwkv-* or cuda_* in $build; build it with CUDA first" >&2
    exit 3
  fi
fi

to=$root/.gpu
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$to" "$stage/lib" "$stage/configs"
for file in "${files[@]}"; do
  strip -o "$stage/$(basename "$file")" "$file"
  # The C and C++ run-time libraries and CUDA's are those of the other machine.
  ldd "$file" | awk '/=> \//{print $3}' |
    { grep -vE '/lib(c|m|pthread|dl|rt|resolv|gcc_s|stdc\+\+|cublas|cublasLt|cudart)\.so' || true; } |
    while IFS= read -r library; do cp -Lf "$library" "$stage/lib/"; done
done
cp "$root"/configs/*.json "$stage/configs/"
# One window over everything: the programs share most of their code.
(cd "$stage" && tar cf - ./*) | xz --threads=1 --lzma2=preset=1,dict=128MiB >"$to/programs.tar.xz"
cp "$root"/tools/gpu/*.sh "$to/"
size=$(du -sm --exclude=jobs "$to" | cut -f 1)
echo "pack.sh: ${#files[@]} programs, $size MiB in $to"
if [ "$size" -ge $limit_mib ]; then
  echo "pack.sh: the limit is $limit_mib MiB; name fewer programs, or remove what else lies there" >&2
  exit 3
fi
