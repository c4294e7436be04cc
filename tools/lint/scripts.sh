#!/bin/sh
# Every shell script parses, is executable if it has a #! line, and passes shellcheck where that is
# installed.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

scripts=$(list_files | while IFS= read -r file; do
  case $file in
    *.sh) echo "$file" ;;
    *.h | *.cpp | *.h5 | *.md | *.json | *.txt | *.cmake) ;;
    *) if head -n 1 "$file" | grep -qE '^#!.*[/ ](ba)?sh( |$)'; then echo "$file"; fi ;;
  esac
done)
if [ -z "$scripts" ]; then
  echo "scripts: no scripts found"
  exit 2
fi

violations=0
count=0
for file in $scripts; do
  count=$((count + 1))
  if ! bash -n "$file"; then
    violations=$((violations + 1))
  fi
  if head -n 1 "$file" | grep -q '^#!' && [ ! -x "$file" ]; then
    echo "$file:1: has a #! line but is not executable"
    violations=$((violations + 1))
  fi
done
if command -v shellcheck >/dev/null 2>&1; then
  for file in $scripts; do
    if ! shellcheck --shell=bash --external-sources --severity=info "$file"; then
      violations=$((violations + 1))
    fi
  done
else
  echo "scripts: shellcheck is not installed, syntax only"
fi
echo "scripts: $count scripts, $violations violations"
[ "$violations" -eq 0 ]
