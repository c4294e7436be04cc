# Sourced by the scripts beside it, with $folder set: unpacks programs.tar.xz there, once.
# shellcheck shell=bash disable=SC2154
if [ -f "$folder/programs.tar.xz" ] && [ ! "$folder/.unpacked" -nt "$folder/programs.tar.xz" ]; then
  tar xJf "$folder/programs.tar.xz" -C "$folder" 2>/dev/null ||
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
      "$folder/programs.tar.xz" "$folder"
  touch "$folder/.unpacked"
fi
# Golden files travel with the checkout that .gpu/ lies in; elsewhere they are looked for in $folder.
if [ -z "${RWKV_GOLDEN_DIR:-}" ]; then
  RWKV_GOLDEN_DIR=$folder/golden
  if [ -d "$folder/../tests/golden" ]; then RWKV_GOLDEN_DIR=$(cd "$folder/../tests/golden" && pwd); fi
fi
export RWKV_GOLDEN_DIR
