#!/bin/bash
# install_test.sh CMAKE BUILD SOURCE: `cmake --install` gives a prefix that works by itself, from any
# folder and after being moved.
set -euo pipefail

cmake=$1
build=$2
source_dir=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "install_test: $1" >&2
  exit 1
}

"$cmake" --install "$build" --prefix "$work/first" >"$work/log" || fail "cmake --install failed"
# Nothing may depend on the place that was installed to.
mv "$work/first" "$work/prefix"
prefix=$work/prefix
mkdir "$work/elsewhere"
cd "$work/elsewhere"

for program in rwkv-data rwkv-train rwkv-eval rwkv-generate rwkv-convert; do
  "$prefix/bin/$program" --help >"$work/help" || fail "$program --help failed"
  grep -q -- --help "$work/help" || fail "$program --help prints no options"
done
for file in share/greylag/configs/pile169m.json share/greylag/configs/quickstart.json \
  share/greylag/quickstart.sh share/greylag/plot_metrics.sh share/greylag/install_deps.sh \
  share/greylag/fetch_vocab.sh share/doc/greylag/LICENSE share/doc/greylag/README.md \
  share/doc/greylag/docs/README.md; do
  [ -s "$prefix/$file" ] || fail "$file is missing"
done
diff -r --exclude=CMakeLists.txt --exclude=README.md "$source_dir/configs" "$prefix/share/greylag/configs" ||
  fail "the installed configs differ from the source tree's"

# The preset is found by its bare name, in this prefix, and neither data nor memory is needed.
"$prefix/bin/rwkv-train" --config pile169m --print-config >"$work/config" ||
  fail "rwkv-train --print-config failed"
grep -q "$prefix/share/greylag/configs" "$work/config" ||
  fail "rwkv-train did not read the preset of its own prefix: $(head -n 5 "$work/config")"
"$prefix/bin/rwkv-train" --config pile169m --dry-run >"$work/dry" ||
  fail "rwkv-train --config pile169m --dry-run failed"
grep -qi 'parameters' "$work/dry" || fail "--dry-run names no parameter count: $(cat "$work/dry")"

"$prefix/share/greylag/quickstart.sh" --help | grep -q -- --prefix || fail "quickstart.sh --help"
rc=0
"$prefix/bin/rwkv-train" --config no_such_preset --dry-run 2>"$work/error" || rc=$?
[ $rc -eq 2 ] || fail "an unknown preset gives exit code $rc, expected 2"
grep -q no_such_preset "$work/error" || fail "the error does not name the preset"
echo "install_test: passed"
