#!/bin/sh
# clang-format over all sources. Pinned to version 14 (Debian 12's), because versions disagree about
# details; skipped (exit code 77) where it is absent.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

tool=
for candidate in clang-format-14 clang-format; do
  if command -v $candidate >/dev/null 2>&1 &&
    $candidate --version 2>/dev/null | grep -q 'version 14\.'; then
    tool=$candidate
    break
  fi
done
if [ -z "$tool" ]; then
  echo "format: skipped, clang-format 14 is not installed (Debian 12: clang-format)"
  exit 77
fi

sources=$(list_files | grep -E '\.(h|hpp|cuh|c|cc|cpp|cu)$')
if [ -z "$sources" ]; then
  echo "format: no sources found"
  exit 2
fi
count=$(printf '%s\n' "$sources" | wc -l | tr -d ' ')
if printf '%s\n' "$sources" | tr '\n' '\0' | xargs -0 -n 16 -P 2 "$tool" --dry-run --Werror; then
  echo "format: $count files, 0 violations"
else
  echo "format: mend with $tool -i FILE"
  exit 1
fi
