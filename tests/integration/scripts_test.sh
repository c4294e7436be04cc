#!/bin/bash
# scripts_test.sh SOURCE: plot_metrics.sh draws what a log holds and refuses what it cannot draw;
# install_deps.sh and quickstart.sh refuse wrong usage.
set -euo pipefail

tools=$1/tools
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "scripts_test: $1" >&2
  exit 1
}
# exits CODE TEXT COMMAND...: the command ends with CODE and says TEXT.
exits() {
  local code=$1 text=$2 rc=0
  shift 2
  "$@" >"$work/out" 2>&1 || rc=$?
  [ $rc -eq "$code" ] || fail "'$*' ended with $rc, expected $code: $(cat "$work/out")"
  grep -q -- "$text" "$work/out" || fail "'$*' does not say '$text': $(cat "$work/out")"
}

exits 2 'unknown argument' "$tools/install_deps.sh" nonsense
exits 2 'at least one purpose' "$tools/install_deps.sh"
exits 0 'RWKV World vocabulary' "$tools/fetch_vocab.sh" --help
exits 2 'no option --nonsense' "$tools/fetch_vocab.sh" --nonsense
exits 0 'quickstart.sh \[--dir DIR\]' "$tools/quickstart.sh" --help
exits 2 'unknown argument' "$tools/quickstart.sh" --nonsense
exits 2 "found 'x', expected a number" "$tools/quickstart.sh" --threads x
exits 3 'a file of that name' "$tools/quickstart.sh" --dir "$tools/quickstart.sh"
exits 3 'no such folder' "$tools/quickstart.sh" --prefix "$work/nowhere"
exits 2 'unknown argument' "$tools/test.sh" --nonsense

# Without apt-get nothing can be installed, so it must say what is missing.
mkdir "$work/path"
for tool in bash grep cat id; do ln -s "$(command -v $tool)" "$work/path/$tool"; done
exits 3 'ninja-build' env PATH="$work/path" "$tools/install_deps.sh" build

if ! command -v gnuplot >/dev/null 2>&1; then
  echo "scripts_test: gnuplot is missing, plot_metrics.sh is not tested"
  exit 77
fi
# Two runs: one with a resume that logs steps again, and a loss that is not finite.
mkdir "$work/one" "$work/two's"
{
  echo '{"type":"run","name":"one","config":{"train":{"steps":4}}}'
  for step in 1 2 3 4 5 6 7 8; do
    echo "{\"type\":\"step\",\"step\":$step,\"tokens\":$((step * 1000)),\"loss\":$((9 - step)).5,\"grad_norm\":1e-1,\"lr\":6e-04,\"tokens_per_s\":1200.5,\"elapsed_s\":$step.25}"
  done
  echo '{"type":"valid","step":8,"valid_loss":1.25}'
  echo '{"type":"sample","step":8,"text":"{\"type\":\"step\",\"step\":99,\"loss\":99}"}'
  echo '{"type":"resume","step":6,"checkpoint":"x"}'
  echo '{"type":"step","step":7,"tokens":7000,"loss":null,"grad_norm":null,"lr":6e-04,"tokens_per_s":1300,"elapsed_s":0.5,"nonfinite":true}'
  echo '{"type":"step","step":8,"tokens":8000,"loss":0.75,"grad_norm":0.2,"lr":6e-04,"tokens_per_s":1300,"elapsed_s":1.5}'
} >"$work/one/log.jsonl"
cp "$work/one/log.jsonl" "$work/two's/log.jsonl"
for axis in step tokens hours; do
  exits 0 wrote "$tools/plot_metrics.sh" -x $axis -o "$work/$axis.png" "$work/one" "$work/two's"
  [ "$(head -c 4 "$work/$axis.png" | tail -c 3)" = PNG ] || fail "$axis.png is no PNG"
done
exits 0 wrote "$tools/plot_metrics.sh" --panels loss,speed,lr,norm -o "$work/a.svg" "$work/two's"
grep -q "two's: training, smoothed" "$work/a.svg" || fail "the picture does not name the run"
grep -q 'nats per token' "$work/a.svg" || fail "the axis has no unit"
if grep -q '>99<' "$work/a.svg"; then fail "a sampled text was taken for a training step"; fi
exits 2 'must end in' "$tools/plot_metrics.sh" -o "$work/a.gif" "$work/one"
exits 2 'unknown panel' "$tools/plot_metrics.sh" --panels loss,nonsense -o "$work/b.png" "$work/one"
exits 2 'expected step, tokens' "$tools/plot_metrics.sh" -x days -o "$work/b.png" "$work/one"
exits 3 'no metrics log' "$tools/plot_metrics.sh" -o "$work/b.png" "$work/nowhere"
echo '{"type":"run"}' >"$work/empty.jsonl"
exits 3 'no training steps' "$tools/plot_metrics.sh" -o "$work/b.png" "$work/empty.jsonl"
exits 3 'cannot write' "$tools/plot_metrics.sh" -o /proc/nowhere/b.png "$work/one"
# gnuplot ends with 0 also when the disk is full: a file that may not grow stands for that.
mkdir "$work/full" "$work/fails"
printf '#!/bin/bash\ntrap "" XFSZ\nulimit -f 2\nexec %s "$@"\n' "$(command -v gnuplot)" \
  >"$work/full/gnuplot"
printf '#!/bin/bash\nprintf "\\n  ^\\nline 3: no reason\\n\\n" >&2\nexit 1\n' >"$work/fails/gnuplot"
chmod +x "$work/full/gnuplot" "$work/fails/gnuplot"
for file in b.png b.svg; do
  exits 3 'cut off; is the disk full' env PATH="$work/full:$PATH" "$tools/plot_metrics.sh" \
    -o "$work/$file" "$work/one"
  exits 3 'gnuplot failed: line 3: no reason' env PATH="$work/fails:$PATH" \
    "$tools/plot_metrics.sh" -o "$work/$file" "$work/one"
  [ "$(wc -l <"$work/out")" -eq 1 ] || fail "more than one line: $(cat "$work/out")"
  [ ! -e "$work/$file" ] || fail "a failure left a picture"
done
echo "scripts_test: passed"
