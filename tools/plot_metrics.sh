#!/bin/bash
# Draws the loss and throughput curves of one or several training runs with gnuplot.
#
#   plot_metrics.sh [options] RUN...      RUN: a run folder, or its log.jsonl
#     -o, --output FILE   picture to write, .png or .svg (default: curves.png)
#     -x, --x AXIS        step, tokens or hours (default: step)
#     --panels LIST       of loss, speed, lr, norm, in this order (default: loss,speed)
#     --smooth A          weight of the past in the smoothed training loss, 0 to 0.999 (default: such
#                         that it reaches back over a fiftieth of the run)
#     --log               logarithmic x axis
#     --title TEXT        above the picture
#
# Training loss: thin as logged, thick smoothed; validation loss: points. Where a run was resumed
# and logged a step again, the later line counts. The log is described in docs/training.md.
set -euo pipefail

usage() {
  sed -n '2,14s/^# \{0,1\}//p' "$0"
}
fail() {
  echo "plot_metrics.sh: $1" >&2
  exit "${2:-2}"
}

output=curves.png
axis=step
panels=loss,speed
smooth=
logscale=
title=
runs=()
while [ $# -gt 0 ]; do
  case $1 in
    -o | --output | -x | --x | --panels | --smooth | --title)
      if [ $# -lt 2 ]; then fail "$1 needs a value"; fi
      case $1 in
        -o | --output) output=$2 ;;
        -x | --x) axis=$2 ;;
        --panels) panels=$2 ;;
        --smooth) smooth=$2 ;;
        --title) title=$2 ;;
      esac
      shift
      ;;
    --log) logscale=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    -*) fail "unknown option '$1'; see --help" ;;
    *) runs+=("$1") ;;
  esac
  shift
done
if [ ${#runs[@]} -eq 0 ]; then fail "name at least one run folder or log.jsonl; see --help"; fi
case $output in
  *.png) terminal="pngcairo size 1200,HEIGHT font 'sans,12'" ;;
  *.svg) terminal="svg size 1000,HEIGHT font 'sans,13' background '#ffffff'" ;;
  *) fail "the picture '$output' must end in .png or .svg" ;;
esac
case $axis in
  step) x_label="step" ;;
  tokens) x_label="training tokens [millions]" ;;
  hours) x_label="time [hours]" ;;
  *) fail "--x '$axis': expected step, tokens or hours" ;;
esac
if [[ ! ${smooth:-0} =~ ^0?(\.[0-9]+)?$ ]]; then fail "--smooth '$smooth': expected 0 to 0.999"; fi
command -v gnuplot >/dev/null 2>&1 ||
  fail "gnuplot is not installed (Debian/Ubuntu: apt-get install gnuplot-nox)" 3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One metrics log to $work/N.train (x, loss, smoothed, tokens/s, lr, grad norm; - if absent) and
# $work/N.valid (x, loss).
number=0
names=()
for run in "${runs[@]}"; do
  log=$run
  if [ -d "$run" ]; then log=$run/log.jsonl; fi
  if [ ! -r "$log" ]; then fail "there is no metrics log $log" 3; fi
  number=$((number + 1))
  name=$(basename "$(cd "$(dirname "$log")" && pwd)")
  if [ "$(basename "$log")" != log.jsonl ]; then name=$(basename "$log" .jsonl); fi
  names+=("$name")
  awk -v axis="$axis" -v smooth="$smooth" -v train="$work/$number.train" \
    -v valid="$work/$number.valid" '
    # The number after "key": in a line of JSON, or "" if it is absent or not finite.
    function get(key) {
      if (!match($0, "\"" key "\" *: *-?[0-9][-+0-9.eE]*")) return ""
      text = substr($0, RSTART, RLENGTH); sub(/.*: */, "", text); return text
    }
    function field(value) { return value == "" ? "-" : value }
    # elapsed_s starts again with every process: a resumed run goes on where the one before ended.
    function hours(seconds) {
      if (seconds + 0 < before + 0) earlier += before
      before = seconds
      return (earlier + seconds) / 3600
    }
    /^[{]"type": *"step"/ {
      step = get("step")
      x = axis == "tokens" ? get("tokens") / 1e6 : axis == "hours" ? hours(get("elapsed_s")) : step
      if (get("loss") == "") next
      if (!(step in loss)) steps[++n] = step
      at[step] = x; loss[step] = get("loss")
      rest[step] = field(get("tokens_per_s")) " " field(get("lr")) " " field(get("grad_norm"))
    }
    /^[{]"type": *"valid"/ {
      step = get("step")
      if (get("valid_loss") == "") next
      if (!(step in valid_loss)) valid_steps[++m] = step
      # Validation follows the training step of the same number.
      valid_at[step] = axis == "step" ? step : x; valid_loss[step] = get("valid_loss")
    }
    END {
      printf "" >train; printf "" >valid
      if (smooth == "") smooth = n > 50 ? 1 - 50 / n : 0
      for (i = 1; i <= n; i++) {
        s = steps[i]
        # Started from 0 and divided by the sum of its weights, so that early values count in full.
        mean = smooth * mean + (1 - smooth) * loss[s]; weight = smooth * weight + 1 - smooth
        print at[s], loss[s], mean / weight, rest[s] >train
      }
      for (i = 1; i <= m; i++) print valid_at[valid_steps[i]], valid_loss[valid_steps[i]] >valid
    }' "$log" || fail "cannot read $log, or write to $work; is the disk full?" 3
  if [ ! -s "$work/$number.train" ]; then fail "$log holds no training steps" 3; fi
done

# The gnuplot script: one panel below the other.
colours=('#1f77b4' '#d62728' '#2ca02c' '#9467bd' '#ff7f0e' '#17becf' '#8c564b' '#e377c2')
IFS=, read -r -a panel_list <<<"$panels"
height=$((60 + 380 * ${#panel_list[@]}))
quoted() {
  printf "'%s'" "${1//\'/\'\'}"
}
{
  echo "set terminal ${terminal/HEIGHT/$height}"
  echo "set output $(quoted "$work/picture")"
  echo "set multiplot layout ${#panel_list[@]},1 title $(quoted "$title") noenhanced"
  echo "set grid lc rgb '#d0d0d0'; set border 3; set tics nomirror; set datafile missing '-'"
  echo "set key top right noenhanced; set lmargin 12; set rmargin 4; set xlabel $(quoted "$x_label")"
  if [ -n "$logscale" ]; then echo "set logscale x"; fi
  for panel in "${panel_list[@]}"; do
    plots=()
    for ((i = 1; i <= number; i++)); do
      colour=${colours[$(((i - 1) % ${#colours[@]}))]}
      data=$(quoted "$work/$i.train")
      name=${names[$((i - 1))]}
      case $panel in
        loss)
          plots+=("$data using 1:2 with lines lw 0.5 lc rgb '#70${colour#\#}' notitle")
          plots+=("$data using 1:3 with lines lw 2 lc rgb '$colour' title $(quoted "$name: training, smoothed")")
          if [ -s "$work/$i.valid" ]; then
            plots+=("$(quoted "$work/$i.valid") using 1:2 with points pt 7 ps 0.9 lc rgb '$colour' title $(quoted "$name: validation")")
          fi
          ;;
        speed) plots+=("$data using 1:(\$4/1000) with lines lw 1.5 lc rgb '$colour' title $(quoted "$name")") ;;
        lr) plots+=("$data using 1:5 with lines lw 1.5 lc rgb '$colour' title $(quoted "$name")") ;;
        norm) plots+=("$data using 1:6 with lines lw 1 lc rgb '$colour' title $(quoted "$name")") ;;
        *) fail "--panels: unknown panel '$panel', expected loss, speed, lr or norm" ;;
      esac
    done
    case $panel in
      loss) echo "set ylabel 'loss [nats per token]'; set yrange [*:*]; set key top right" ;;
      speed) echo "set ylabel 'throughput [thousand tokens/s]'; set yrange [0:*]; set key bottom right" ;;
      lr) echo "set ylabel 'learning rate'; set yrange [0:*]; set key bottom right" ;;
      norm) echo "set ylabel 'gradient norm before clipping'; set yrange [0:*]; set key top right" ;;
    esac
    printf 'plot %s\n' "$(printf '%s, ' "${plots[@]}" | sed 's/, $//')"
  done
  echo "unset multiplot"
} >"$work/script" || fail "cannot write to $work; is the disk full? Name a folder with room by TMPDIR" 3

gnuplot "$work/script" >"$work/errors" 2>&1 ||
  fail "gnuplot failed: $(grep -v '^[[:space:]]*$' "$work/errors" | tail -n 1)" 3
cat "$work/errors" >&2
# gnuplot ends well also when the disk is full. What follows IEND is a checksum.
whole() {
  local end
  end=$({ tail -c 8 "$1" | tr -d '\0'; } 2>/dev/null)
  case $output in
    *.png) [[ $end = IEND* ]] ;;
    *.svg) [[ $end = *'</svg>' ]] ;;
  esac
}
whole "$work/picture" ||
  fail "the picture that gnuplot drew in $work is cut off; is the disk full? Name a folder with room by TMPDIR" 3
# Written beside and renamed, so that a failure never leaves half a picture.
if ! reason=$({ mkdir -p "$(dirname "$output")" && cp "$work/picture" "$output.tmp" &&
  mv "$output.tmp" "$output"; } 2>&1); then
  rm -f "$output.tmp" 2>/dev/null || true
  fail "cannot write $output: $reason" 3
fi
echo "wrote $output"
