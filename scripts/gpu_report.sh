#!/usr/bin/env bash
# What a GPU does with Luna, in at most eight minutes: whether it computes what it should; layers next to FlashAttention;
# training and decoding of the models for WMT; the paper's efficiency table.
#
#   scripts/gpu_report.sh          measure what is not there yet, then the tables; the exit code is 1 if anything is
#                                  computed wrongly, or could not be looked at
#   scripts/gpu_report.sh table    the tables of what is there
#
# OUT/report.md has the tables for docs/gpu.md, OUT/report.json the numbers. A part that fails, or takes longer than its
# share of the time, is written down and does not end the others. It can be interrupted and run again: parts that are
# done are kept, as long as it is the same GPU and torch; to measure anew, remove OUT.
#
# Environment: OUT (gpu-report-out), DEVICE (cuda), THREADS.
# SMOKE=1 DEVICE=cpu: sizes that mean nothing, on a CPU.
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/gpu_report.sh
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

DEFAULT_OUT=gpu-report-out
. scripts/experiment.sh
DEVICE=${DEVICE:-cuda}
PARTS=(correctness layers training decoding lra)

run() {
  local part code device=(--device "$DEVICE")
  [ $# -eq 0 ] || fail "run takes no arguments: set OUT, DEVICE or SMOKE"
  [[ $DEVICE =~ ^(cuda|cpu)$ ]] || fail "DEVICE is $DEVICE: set it to cuda, or to cpu with SMOKE=1"
  [ "$DEVICE" != cpu ] || [ -n "$SMOKE" ] || fail "DEVICE is cpu, and the sizes are for a GPU: set SMOKE=1"
  own "$OUT"
  [ "$DEVICE" = cpu ] || has_gpu || fail "torch finds no GPU here: set DEVICE=cpu and SMOKE=1 for a trial on a CPU"
  hold "$OUT"
  for part in "${PARTS[@]}"; do
    code=0
    job python -m scripts.gpu_report run "${device[@]}" ${SMOKE:+--smoke} "$part" "$OUT" || code=$?
    [ $code = 0 ] || echo "$part ended with exit code $code: the others go on" >&2
  done
  release
  table
}

table() {
  job python -m scripts.gpu_report tables "$OUT"
}

run_command "run table" "${@:-run}"
