#!/usr/bin/env bash
# Multi30k English-German: fairseq's Transformer and Luna, the same vocabulary, sizes, updates and seed.
#
#   scripts/multi30k.sh prepare FOLDER   FOLDER holds {train,val,test_2016_flickr}.{en,de}, untokenised; other pairs will
#                                        do, but no figure of docs/multi30k.md is for them
#   scripts/multi30k.sh train NAME...    NAME: a config, configs/translation/NAME.yaml; goes on where it stopped
#   scripts/multi30k.sh score NAME...    average of the last 5 epochs, beam 5, sacreBLEU on test_2016_flickr
#   scripts/multi30k.sh table            what is finished, as a table; the rest says "not run"
#
# Environment: OUT (default multi30k-out), THREADS (default 1), SMOKE=1 (a tiny run in OUT/smoke); OPTIONS and TAG for a
# search: OPTIONS="optimization.lr=[0.004] lr_scheduler.warmup_updates=300" TAG=lr4e-3 names the run NAME-lr4e-3.
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/multi30k.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

DEFAULT_OUT=multi30k-out
THREADS=${THREADS:-1}
. scripts/experiment.sh
. scripts/translation.sh
MADE=(data-bin/.done)
FIRST="prepare FOLDER" TEST_SET=test_2016_flickr

prepare() {
  [ $# -eq 1 ] || fail "prepare takes the folder with the text"
  local folder file
  folder=$(absolute "$1")
  [[ $(realpath "$folder")/ != "$(realpath -m "$OUT")"/* ]] \
    || fail "$folder lies in $OUT, where this script writes over and removes what is there: set OUT to another folder"
  for file in {train,val,test_2016_flickr}.{en,de}; do
    [ -f "$folder/$file" ] || fail "$folder/$file does not exist: name the folder with Multi30k's text"
  done
  if already ""; then return; fi
  own "$OUT" "${MADE[@]}"
  tell_other_text "$folder" docs/multi30k.md {train.en,train.de}" 29000 Multi30k's" {val.en,val.de}" 1014 Multi30k's" \
    {test_2016_flickr.en,test_2016_flickr.de}" 1000 Multi30k's"
  hold "$OUT"
  rm -rf "$OUT/text" "$OUT/data-bin"
  mkdir -p "$OUT/text"
  local small=()
  [ -z "$SMOKE" ] || small=(--vocab-size 500 --lines 400 400 100)
  job luna-fairseq prepare pieces --train "$folder/train" --valid "$folder/val" --test "$folder/test_2016_flickr" \
    --vocab-size 4000 --keep-text --out "$OUT/text" "${small[@]}"
  binarise ""
}

table() {
  luna-fairseq table multi30k "$OUT"
}

run_command "prepare train score table" "$@"
