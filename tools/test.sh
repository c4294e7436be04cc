#!/bin/bash
# The whole test suite from a clean clone: installs missing packages (tools/install_deps.sh), builds
# everything optimised and once more with AddressSanitizer and UndefinedBehaviorSanitizer, and runs
# ctest in both. Where nvcc is present the CUDA preset is compiled as well.
#
#   tools/test.sh [--no-sanitizers] [--build-dir DIR]
#     --no-sanitizers   only the optimised build
#     --build-dir DIR   build in DIR/cpu and DIR/cpu-debug (default: build-cpu, build-cpu-debug)
#
# Tests that need texts and vocabularies of others take their folder from RWKV_TEST_DATA (default:
# ../shared/data beside the repository, if it is there) and are counted as skipped without it.
# The sanitizer run leaves out the lints, which do not depend on the build.
# Exit code: 0 all passed, 1 a build or a test failed, 2 wrong usage, 3 packages are missing.
set -euo pipefail

usage() {
  sed -n '2,14s/^# \{0,1\}//p' "$0"
}

source_dir=$(cd "$(dirname "$0")/.." && pwd)
sanitizers=1
build_dir=
while [ $# -gt 0 ]; do
  case $1 in
    --no-sanitizers) sanitizers=0 ;;
    --build-dir)
      if [ $# -lt 2 ]; then
        echo "test.sh: --build-dir needs a folder" >&2
        exit 2
      fi
      build_dir=$2
      shift
      ;;
    --build-dir=*) build_dir=${1#*=} ;;
    --help | -h)
      usage
      exit 0
      ;;
    *)
      echo "test.sh: unknown argument '$1'; see --help" >&2
      exit 2
      ;;
  esac
  shift
done

# Where a preset is built.
folder_of() {
  if [ -n "$build_dir" ]; then echo "$build_dir/$1"; else echo "$source_dir/build-$1"; fi
}
if [ -n "$build_dir" ]; then
  mkdir -p "$build_dir"
  build_dir=$(cd "$build_dir" && pwd)
fi

jobs=$(nproc)
started=$SECONDS
step() {
  printf '== %s (%d s since the start)\n' "$*" $((SECONDS - started))
}

step "packages"
"$source_dir/tools/install_deps.sh" build test plot

cd "$source_dir"
# Lets ccache recognise a file that was compiled in another build folder.
export CCACHE_BASEDIR=$source_dir
if [ -z "${RWKV_TEST_DATA:-}" ] && [ -d "$source_dir/../shared/data" ]; then
  RWKV_TEST_DATA=$(cd "$source_dir/../shared/data" && pwd)
  export RWKV_TEST_DATA
fi
echo "test data: ${RWKV_TEST_DATA:-none (RWKV_TEST_DATA is not set): the tests that need it are skipped}"

presets=(cpu)
if [ $sanitizers -eq 1 ]; then presets+=(cpu-debug); fi
for preset in "${presets[@]}"; do
  step "building preset $preset"
  cmake --preset "$preset" -B "$(folder_of "$preset")"
  cmake --build "$(folder_of "$preset")" -j "$jobs"
done

nvcc=$(command -v nvcc || true)
if [ -z "$nvcc" ] && [ -x /usr/local/cuda/bin/nvcc ]; then nvcc=/usr/local/cuda/bin/nvcc; fi
if [ -n "$nvcc" ]; then
  step "building preset cuda-sm90 (compiled only, with $nvcc)"
  cmake --preset cuda-sm90 -B "$(folder_of cuda-sm90)" -DRWKV_BUILD_TESTS=OFF \
    -DCUDAToolkit_ROOT="$(dirname "$(dirname "$nvcc")")"
  if [ -n "$(find kernels -name '*.cu' -print -quit)" ]; then
    cmake --build "$(folder_of cuda-sm90)" -j "$jobs"
  else
    echo "there are no CUDA sources yet: configured only"
  fi
fi

export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
failed=
for preset in "${presets[@]}"; do
  step "testing preset $preset"
  args=(--test-dir "$(folder_of "$preset")" --output-on-failure --no-tests=error -j "$jobs")
  if [ "$preset" = cpu-debug ]; then args+=(--label-exclude '^lint$'); fi
  ctest "${args[@]}" || failed="$failed $preset"
done
if [ -n "$failed" ]; then
  echo "test.sh: failures in preset$failed; $((SECONDS - started)) s" >&2
  exit 1
fi
