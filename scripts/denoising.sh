#!/usr/bin/env bash
# Pretraining of the whole translation model by denoising (BART, Lewis et al. 2020), then fine-tuning on few pairs: the
# Transformer and Luna, the same text, sizes, updates and seed.
#
#   scripts/denoising.sh prepare FOLDER   FOLDER holds train.txt, more text of the source language; the figures of
#                                         docs/multi30k.md are for WikiText-2's test part, and for no other text
#   scripts/denoising.sh pretrain NAME... NAME: of configs/translation/{denoising,pairs}_NAME.yaml; goes on where it stopped
#   scripts/denoising.sh finetune NAME... on PAIRS pairs, from the pretrained model
#   scripts/denoising.sh scratch NAME...  on the same pairs, from none
#   scripts/denoising.sh score NAME...    average of the last 5 epochs, beam 5, sacreBLEU on test_2016_flickr, of both
#   scripts/denoising.sh table            what is finished, as a table; the rest says "not run"
#
# Environment: PAIRS (5000), FROM (default multi30k-out, the folder of scripts/multi30k.sh: pieces, text of both languages
# and the pairs; of a smoke run FROM/smoke), OUT (default denoising-out), THREADS, SMOKE; OPTIONS of all three trainings, and
# TAG, as in scripts/multi30k.sh.
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/denoising.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

PAIRS=${PAIRS:-5000}
DEFAULT_OUT=denoising-out
THREADS=${THREADS:-1}
. scripts/experiment.sh
. scripts/translation.sh
find_multi30k
MADE=(data-bin/.done)
FIRST="prepare FOLDER" TEST_SET=test_2016_flickr
TEXT=$OUT/corpus/data-bin/shard0

prepare() {
  [ $# -eq 1 ] || fail "prepare takes the folder with more text"
  [[ $PAIRS =~ ^[1-9][0-9]*$ ]] || fail "PAIRS is $PAIRS: set it to a number of sentence pairs"
  local folder split
  folder=$(absolute "$1")
  [ -f "$folder/train.txt" ] || fail "$folder/train.txt does not exist: name the folder with WikiText-2's text"
  if already "PAIRS=$PAIRS"; then return; fi
  own "$OUT" "${MADE[@]}"
  need_multi30k
  tell_other_text "$folder" docs/multi30k.md "train.txt 4358 WikiText-2's test part"
  hold "$OUT"
  rm -rf "$OUT/text" "$OUT/data-bin"
  # One dictionary for all, with the symbol that denoising would add, so that what was learned fits. (Luna leaves that
  # symbol out where a translation does not have it; fairseq's Transformer fails.)
  mkdir -p "$OUT/pieces" "$OUT/text"
  cp "$FROM/text/spm.model" "$OUT/pieces/sentencepiece.model"
  { cat "$FROM/data-bin/dict.en.txt"; echo '<mask> 0'; } > "$OUT/pieces/dict.txt"
  job luna-fairseq prepare corpus --train "$FROM"/text/train.raw.{en,de} "$folder/train.txt" --valid "$FROM/text/valid.raw.de" \
    --pieces "$OUT/pieces" --shards 1 --out "$OUT/corpus"
  for split in train valid test; do cp "$FROM"/text/$split.{en,de} "$OUT/text"; done
  for split in en de; do head -n "$PAIRS" "$FROM/text/train.$split" > "$OUT/text/train.$split"; done
  cp "$FROM/text/test.raw.de" "$FROM/text/spm.model" "$OUT/text"
  binarise "PAIRS=$PAIRS" --srcdict "$OUT/pieces/dict.txt"
}

pretrain() {
  need_data
  SMOKE_OPTIONS+=(++optimization.max_update=2)
  train_configs configs/translation "$TEXT" "${@/#/denoising_}"
}

scratch() {
  need_data
  train_configs configs/translation "$OUT/data-bin" "${@/#/pairs_}"
}

finetune() {
  need_data
  local name before
  for name in "$@"; do
    check_config configs/translation "pairs_$name"
    before=$(run_of "denoising_$name")
    [ -f "$before/.trained" ] || fail "denoising_$name is not trained: run '$0 pretrain $name' first${TAG:+, with TAG=$TAG}"
    hydra "task.data=$OUT/data-bin" "checkpoint.finetune_from_model=$before/checkpoints/checkpoint_best.pt"
    # shellcheck disable=SC2086
    train_config configs/translation "pairs_$name" "$(run_of "pairs_$name")-denoised" "${HYDRA[@]}" ${OPTIONS:-}
  done
}

score() {
  need_data
  local name folder more=${TAG:+, with TAG=$TAG}
  for name in "$@"; do
    check_config configs/translation "pairs_$name"
    folder=$(run_of "pairs_$name")
    [ -f "$folder/.trained" ] || fail "pairs_$name is not trained from scratch: run '$0 scratch $name' first$more"
    [ -f "$folder-denoised/.trained" ] || fail "pairs_$name is not fine-tuned: run '$0 finetune $name' first$more"
  done
  for name in "${@/#/pairs_}"; do
    score_config "$name"
    TAG=${TAG:+$TAG-}denoised score_config "$name"
  done
}

table() {
  luna-fairseq table denoising "$OUT"
}

run_command "prepare pretrain finetune scratch score table" "$@"
