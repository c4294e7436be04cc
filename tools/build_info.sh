#!/bin/sh
# Writes a C++ header with the commit (git describe; "unknown" outside a checkout, as in an unpacked
# archive) and the hash of the GPU kernels' sources. Called by every build; the file changes only
# when its contents do.
#
#   tools/build_info.sh HEADER
set -eu
header=$1
root=$(cd "$(dirname "$0")/.." && pwd -P)
commit=unknown
# An archive unpacked inside somebody else's checkout is not that checkout.
if top=$(git -C "$root" rev-parse --show-toplevel 2>/dev/null) && [ "$top" = "$root" ]; then
  commit=$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)
fi
{
  echo '#pragma once'
  echo '// Written by tools/build_info.sh.'
  echo "#define RWKV_GIT_DESCRIBE \"$commit\""
  echo "#define RWKV_KERNEL_HASH \"$("$root/tools/kernel_hash.sh" "$root")\""
} >"$header.new"
if cmp -s "$header.new" "$header"; then rm "$header.new"; else mv "$header.new" "$header"; fi
