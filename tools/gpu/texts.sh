# Sourced by the scripts that train on books, with $here, $texts, $vocabulary and $out set: unpacks the
# programs into $folder and makes $WORK, $out, $device and $config.
# shellcheck shell=bash disable=SC2154,SC2034
folder=${BIN:-$here}
# shellcheck source-path=SCRIPTDIR source=unpack.sh
. "$here/unpack.sh"
export LD_LIBRARY_PATH=$folder/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
device=${DEVICE:-cuda}
if [ -z "${WORK:-}" ]; then
  WORK=$(mktemp -d)
  trap 'rm -rf "$WORK"' EXIT
fi
mkdir -p "$out" "$WORK"
say() { echo "== $* ($SECONDS s)" | tee -a "$out/summary.txt"; }
config=books
if [ -f "$folder/configs/books.json" ]; then config=$folder/configs/books.json; fi

tokenizer=${TOKENIZER:-}
kind=${tokenizer:+-$tokenizer}
how=(--vocab "$vocabulary")
if [ -n "$tokenizer" ]; then how=(--tokenizer "$tokenizer"); fi

# tokens PART: the token file of books_PART, made once: WORK/PART$kind.h5.
tokens() {
  local text=$texts/books_$1.jsonl
  if [ ! -f "$WORK/$1$kind.h5" ]; then
    if [ -f "$text.xz" ]; then
      xz -dc "$text.xz" 2>/dev/null ||
        python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' \
          "$text.xz"
    else
      cat "$text"
    fi | "$folder/rwkv-data" tokenize - --format jsonl "${how[@]}" -o "$WORK/$1$kind.h5"
  fi
}
