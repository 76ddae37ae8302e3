#!/usr/bin/env bash
# Multi30k English-German: fairseq's Transformer and Luna, the same vocabulary, sizes, updates and seed.
#
#   scripts/multi30k.sh prepare FOLDER   FOLDER holds {train,val,test_2016_flickr}.{en,de}, untokenised
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
MADE=(data-bin/.done)

prepare() {
  [ $# -eq 1 ] || fail "prepare takes the folder with the text"
  local folder file
  folder=$(absolute "$1")
  [[ $(realpath "$folder")/ != "$(realpath -m "$OUT")"/* ]] \
    || fail "$folder lies in $OUT, where this script writes over and removes what is there: set OUT to another folder"
  for file in {train,val,test_2016_flickr}.{en,de}; do
    [ -f "$folder/$file" ] || fail "$folder/$file does not exist: name the folder with Multi30k's text"
  done
  if [ -f "$OUT/data-bin/.done" ]; then echo "already prepared: $OUT/data-bin"; return; fi
  own "$OUT" "${MADE[@]}"
  hold "$OUT"
  rm -rf "$OUT/text" "$OUT/data-bin"
  mkdir -p "$OUT/text"
  local small=()
  [ -z "$SMOKE" ] || small=(--vocab-size 500 --lines 400 400 100)
  job luna-fairseq prepare pieces --train "$folder/train" --valid "$folder/val" --test "$folder/test_2016_flickr" \
    --vocab-size 4000 --keep-text --out "$OUT/text" "${small[@]}"
  preprocess 2 text data-bin preprocess.log || fail_with $? "fairseq-preprocess failed: see $OUT/preprocess.log"
  touch "$OUT/data-bin/.done"
  release
  echo "prepared: $OUT/data-bin"
}

# The folder of a run.
run_of() { echo "$OUT/$1${TAG:+-$TAG}"; }
need_data() { [ -f "$OUT/data-bin/.done" ] || fail "no data in $OUT: run '$0 prepare FOLDER' first"; }

SMOKE_OPTIONS=(++model.encoder_layers=1 ++model.decoder_layers=1 ++optimization.max_epoch=1
  ++common.log_interval=1 ++dataset.max_tokens=2000)

train() {
  need_data
  train_translation "$OUT/data-bin" "$@"
}

score() {
  need_data
  local name
  for name in "$@"; do
    check_config configs/translation "$name"
    [ -f "$(run_of "$name")/.trained" ] || fail "$name is not trained: run '$0 train $name' first${TAG:+, with TAG=$TAG}"
    name=$name${TAG:+-$TAG}
    hold "$OUT/$name"
    average_run "$OUT/$name" --num-epoch-checkpoints "$([ -n "$SMOKE" ] && echo 1 || echo 5)"
    logged "$OUT/$name/generate.log" fairseq-generate "$OUT/data-bin" --user-dir "$USER_DIR" --path "$OUT/$name/average.pt" \
      --cpu --beam 5 --lenpen 1 --max-tokens 4000 --num-workers 0 --bpe sentencepiece --sentencepiece-model "$OUT/text/spm.model" \
      || fail_with $? "generation failed: see $OUT/$name/generate.log"
    take_translations "$OUT/$name/generate.log" "$OUT/text/test.raw.de" "$OUT/$name/test.de"
    job sacrebleu "$OUT/text/test.raw.de" -i "$OUT/$name/test.de" -w 2 > "$OUT/$name/bleu.json"
    add_to_card "$OUT/$name" test_2016_flickr "$OUT/$name/bleu.json"
    release
    echo "$name: BLEU $(json_value "$OUT/$name/bleu.json" score)  $(json_value "$OUT/$name/bleu.json" signature)"
  done
}

table() {
  luna-fairseq table multi30k "$OUT"
}

run_command "prepare train score table" "$@"
