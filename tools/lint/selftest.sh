#!/bin/bash
# Proves that every lint can fail: builds a small tree that passes, plants one violation at a time,
# and expects the lint to name it.
set -euo pipefail

lints=$(cd "$(dirname "$0")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
failures=0
planted=0

# put FILE CONTENT: writes a file of the tree.
put() {
  mkdir -p "$tree/$(dirname "$1")"
  printf '%b' "$2" >"$tree/$1"
}

# passes LINT
passes() {
  local out
  if ! out=$("$lints/$1.sh" "$tree" 2>&1); then
    echo "selftest: $1 fails on a clean tree:"
    echo "$out"
    failures=$((failures + 1))
  fi
}

# catches LINT FILE CONTENT TEXT: with FILE planted, LINT exits 1 and its output contains TEXT.
catches() {
  local rc=0 out before=
  planted=$((planted + 1))
  if [ -e "$tree/$2" ]; then
    before=$(mktemp)
    cp -p "$tree/$2" "$before"
  fi
  put "$2" "$3"
  out=$("$lints/$1.sh" "$tree" 2>&1) || rc=$?
  if [ "$rc" -ne 1 ] || [[ $out != *"$4"* ]]; then
    echo "selftest: $1 did not catch the violation in $2 (exit $rc, expected 1 and '$4'):"
    echo "$out"
    failures=$((failures + 1))
  fi
  if [ -n "$before" ]; then mv "$before" "$tree/$2"; else rm "$tree/$2"; fi
}

put kernels/core/error.h '#pragma once\n#include <string>\n'
put kernels/ops/op.h '#pragma once\n#include "kernels/core/error.h"\n'
put kernels/cpu/add.cpp '#include <Eigen/Core>\n\n#include "kernels/ops/op.h"\n'
put kernels/ref/add_ref.h '#pragma once\n#include <complex>\n'
put data/io/hdf5_file.cpp '#include <hdf5.h>\n#include <sys/stat.h>\n'
put data/io/hdf5_file.h '#pragma once\n'
put data/loader.h '#pragma once\n#include "data/io/hdf5_file.h"\n'
put model/graph/graph.h '#pragma once\n#include "kernels/ops/op.h"\n'
put model/config.h '#pragma once\n#include "model/graph/graph.h"\n'
put model/config.cpp '#include <nlohmann/json.hpp>\n\n#include "model/config.h"\n'
put trainer/trainer.h '#pragma once\n#include "data/loader.h"\n#include "model/config.h"\n'
put inference/engine.h '#pragma once\n#include "model/config.h"\n'
put tools/train.cpp '#include <CLI/CLI.hpp>\n\n#include "trainer/trainer.h"\n'
put tests/unit/add_test.cpp '#include <gtest/gtest.h>\n\n#include "kernels/ref/add_ref.h"\n'
put CMakeLists.txt 'add_subdirectory(kernels)\n'
put kernels/CMakeLists.txt 'include(cpu/sources.cmake)\n'
put kernels/cpu/sources.cmake 'set(SOURCES cpu/add.cpp)  # relative to kernels/\n'
put data/CMakeLists.txt 'add_library(data io/hdf5_file.cpp)\n'
put model/CMakeLists.txt 'add_library(model\n  config.cpp\n)\n'
put tools/CMakeLists.txt 'add_executable(train train.cpp)\n'
# shellcheck disable=SC2016  # a variable of CMake
put tests/CMakeLists.txt 'foreach(area ops)\n  include(${area}.cmake OPTIONAL)\nendforeach()\n'
put tests/ops.cmake 'test(add unit/add_test.cpp)\n'
put tools/run.sh '#!/bin/sh\necho run\n'
chmod +x "$tree/tools/run.sh"
put README.md 'See [the script](tools/run.sh) and [outside](https://example.org/x).\n'
cp "$lints/../../.clang-format" "$tree/.clang-format"
for lint in layering targets files scripts links; do passes "$lint"; done

catches layering kernels/core/bad.h '#include "kernels/ops/op.h"\n' 'must not include kernels/ops/'
catches layering kernels/cpu/bad.h '#include "model/config.h"\n' 'must not include model/'
catches layering kernels/cpu/bad.h '#include "kernels/ref/add_ref.h"\n' 'must not include kernels/ref/'
catches layering data/bad.h '  #  include "model/config.h"\n' 'must not include model/'
catches layering model/graph/bad.h '#include "model/config.h"\n' 'must not include model/'
catches layering model/graph/bad.h '#include "data/io/hdf5_file.h"\n' 'must not include data/io/'
catches layering model/bad.h '#include "data/loader.h"\n' 'must not include data/'
catches layering model/bad.h '#include "trainer/trainer.h"\n' 'must not include trainer/'
catches layering trainer/bad.h '#include "inference/engine.h"\n' 'must not include inference/'
catches layering inference/bad.h '#include "trainer/trainer.h"\n' 'must not include trainer/'
catches layering inference/bad.h '#include "data/loader.h"\n' 'must not include data/'
catches layering data/bad.h '#include "loader.h"\n' 'is not a file relative to the root'
catches layering extra/bad.h '#include <string>\n' 'is in no known layer'
catches layering model/bad.cpp '#include <hdf5.h>\n' '<hdf5.h> belongs in'
catches layering model/bad.cpp '#include "hdf5.h"\n' '<hdf5.h> belongs in'
catches layering model/bad.cpp '#include <Eigen/Dense>\n' '<Eigen/Dense> belongs in'
catches layering kernels/core/rng.cpp '#include <Eigen/Dense>\n' '<Eigen/Dense> belongs in'
catches layering trainer/config.h '#include <nlohmann/json.hpp>\n' '<nlohmann/json.hpp> belongs in'
catches layering kernels/bad.cpp '#include <nlohmann/json.hpp>\n' '<nlohmann/json.hpp> belongs in'
catches layering model/graph/bad.cpp '#include <nlohmann/json.hpp>\n' '<nlohmann/json.hpp> belongs in'
catches layering trainer/bad.cpp '#include <CLI/CLI.hpp>\n' '<CLI/CLI.hpp> belongs in'
catches layering trainer/bad.cpp '#include <mpi.h>\n' '<mpi.h> belongs in'
catches layering model/bad.cpp '#include <cuda_runtime.h>\n' '<cuda_runtime.h> belongs in'
catches layering tools/bad.cpp '#include <boost/any.hpp>\n' '<boost/any.hpp> is not known'

catches targets tests/unit/new_test.cpp '\n' 'tests/unit/new_test.cpp:1: is named in no CMake file'
catches targets trainer/loop.cpp '\n' 'trainer/loop.cpp:1: is named in no CMake file'
catches targets kernels/add.cpp '\n' 'kernels/add.cpp:1: is named in no CMake file'
catches targets kernels/cpu/sources.cmake '# cpu/add.cpp\n' 'kernels/cpu/add.cpp:1: is named'
catches targets tests/wkv.cmake '\n' 'wkv is not in the list of areas'

catches files model/long.h "$(yes '\n' | head -n 601 | tr -d '\n')" '601 lines'
catches files model/big.txt "$(head -c 1000001 /dev/zero | tr '\0' a)" '1000001 bytes'
catches files model/open.cpp '// TO''DO: later\n' 'model/open.cpp:1: open work'
catches files model/tab.cpp 'int x;\n\tint y;\n' 'model/tab.cpp:2: tab'
catches files model/blank.cpp 'int x; \n' 'model/blank.cpp:1: blank'

# Records: a current one passes, one of other kernels is skipped.
mkdir -p "$tree/kernels/cuda" "$tree/kernels/wkv"
put kernels/cuda/add.cu 'int x;\n'
record() { printf '{"commit": "abc", "rows": [1, -2.5e-3, {"a": null}], "kernel_hash": "%s"}\n' "$1"; }
hash=$("$lints/../kernel_hash.sh" "$tree")
put tools/records/cpu-old.json '{"device": "processor"}\n'
passes records
put tools/records/gpu.json "$(record "$hash")"
passes records
put kernels/cuda/add.cu 'int y;\n'
rc=0
out=$("$lints/records.sh" "$tree") || rc=$?
if [ "$rc" -ne 77 ] || [[ $out != *'gpu.json:1: was measured with other kernels, at commit abc'* ]]; then
  echo "selftest: records ends with $rc, expected 77, for a record of other kernels: $out"
  failures=$((failures + 1))
fi
put tools/records/gpu.json "$(record "$("$lints/../kernel_hash.sh" "$tree")")"
passes records
catches records tools/records/gpu2.json '{"commit": "abc", "rows": []}\n' 'gpu2.json:1: has no "kernel_hash"'
catches records tools/records/gpu2.json '{"kernel_hash": "abc"}\n' 'has 3 digits'
catches records tools/records/gpu2.json '{"rows": [1, 2,], "x": 1}\n' 'is not JSON'
catches records tools/records/gpu2.json '{"rows": [1 2]}\n' 'is not JSON'
rm -r "$tree/kernels/cuda" "$tree/kernels/wkv" "$tree/tools/records"

catches scripts tools/bad.sh 'if true; then\n' 'syntax error'
catches scripts tools/plain.sh '#!/bin/sh\necho\n' 'is not executable'
catches links docs/bad.md 'See [that](../missing.md#part).\n' 'link to ../missing.md'

rc=0
"$lints/format.sh" "$tree" >/dev/null 2>&1 || rc=$?
if [ "$rc" -eq 77 ]; then
  echo "selftest: clang-format 14 is not installed, its lint is not tested"
else
  passes format
  catches format model/ugly.cpp 'int  x ;\n' '[-Wclang-format-violations]'
fi

# A lint of nothing must not pass.
empty=$(mktemp -d)
for lint in layering targets files scripts links; do
  rc=0
  "$lints/$lint.sh" "$empty" >/dev/null 2>&1 || rc=$?
  if [ "$rc" -ne 2 ]; then
    echo "selftest: $lint exits with $rc on an empty tree, expected 2"
    failures=$((failures + 1))
  fi
done
rmdir "$empty"

echo "selftest: $planted violations planted, $failures failures"
[ "$failures" -eq 0 ]
