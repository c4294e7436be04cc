#!/bin/sh
# Puts the RWKV World vocabulary where the programs look for it: the user's cache folder
# ($XDG_CACHE_HOME/greylag, else ~/.cache/greylag), or the folder given as first argument.
# The file belongs to the authors of the Python package "rwkv" (Apache-2.0), which ships it; the
# package is downloaded with pip, unpacked and thrown away again. Nothing is installed.
set -eu

name=rwkv_vocab_v20230424.txt
sha256=e6dee3d4e31b4d5c40ac99508ac6c701ceef4bed681bf2167ce9a908552bca89  # with LF line ends
case ${1:-} in
-h | --help)
  sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
  exit 0
  ;;
-*)
  echo "fetch_vocab.sh: there is no option $1; the only argument is a folder" >&2
  exit 2
  ;;
esac
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/greylag}

if [ -s "$folder/$name" ]; then
  echo "$folder/$name is there already"
  exit 0
fi

python=$(command -v python3) || {
  echo "fetch_vocab.sh: python3 is needed (Debian/Ubuntu: apt-get install python3-pip)" >&2
  exit 2
}
"$python" -m pip --version >/dev/null 2>&1 || {
  echo "fetch_vocab.sh: pip is needed (Debian/Ubuntu: apt-get install python3-pip)" >&2
  exit 2
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --dest "$work" rwkv || {
  echo "fetch_vocab.sh: pip could not download the package rwkv; is there a network?" >&2
  echo "Take $name from any copy of that package and put it into $folder" >&2
  exit 3
}
"$python" - "$work" "$name" <<'PY'
import glob, os, sys, zipfile
work, name = sys.argv[1:]
with zipfile.ZipFile(glob.glob(os.path.join(work, "rwkv-*.whl"))[0]) as wheel:
    data = wheel.read("rwkv/" + name).replace(b"\r\n", b"\n")
with open(os.path.join(work, name), "wb") as out:
    out.write(data)
PY

if ! echo "$sha256  $work/$name" | sha256sum --check --status; then
  echo "fetch_vocab.sh: the package holds another vocabulary than expected (sha256 differs)" >&2
  exit 3
fi
mkdir -p "$folder"
cp "$work/$name" "$folder/$name.$$.tmp"
mv "$folder/$name.$$.tmp" "$folder/$name"
echo "wrote $folder/$name"
