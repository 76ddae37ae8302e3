#!/usr/bin/env bash
# WMT'14 English-German, from the public archives to the paper's table.
#
#   scripts/wmt14.sh download         archives and their text; WMT14_SOURCE: a folder or a mirror that has them
#   scripts/wmt14.sh prepare          clean, cut into pieces, binarise
#   scripts/wmt14.sh train NAME...    NAME: a config, configs/translation/NAME.yaml; goes on where it stopped
#   scripts/wmt14.sh average NAME...  the last AVERAGE checkpoints
#   scripts/wmt14.sh tune NAME...     the length penalty that is best on newstest2013 (optional: else LENPEN)
#   scripts/wmt14.sh generate NAME... newstest2014, beam 5
#   scripts/wmt14.sh score NAME...    sacreBLEU with its signature, tokenised BLEU; a model card beside the average
#   scripts/wmt14.sh table            what is finished next to the paper's figures; the rest says "not run"
#
# Environment: OUT (wmt14-out), RECIPE (sentencepiece, or moses as published), AVERAGE (10), LENPEN (0.6, or what tune
# found), WORKERS, THREADS, WMT14_SOURCE, WMT14_CHECKSUMS (a file of sha256sum, for other archives); SMOKE=1 (a tiny run in OUT/smoke);
# OPTIONS and TAG as in scripts/multi30k.sh: OPTIONS="optimization.update_freq=[4]" with a quarter of the GPUs.
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/wmt14.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

DEFAULT_OUT=wmt14-out
. scripts/experiment.sh
. scripts/translation.sh
MADE=(raw/europarl.en)
RECIPE=${RECIPE:-sentencepiece}
case $RECIPE in sentencepiece | moses) ;; *) fail "RECIPE is $RECIPE: set it to sentencepiece or moses" ;; esac
DATA=$OUT/$RECIPE
WORKERS=${WORKERS:-$(nproc)}
AVERAGE=${AVERAGE:-10}

download() {
  local source=${WMT14_SOURCE:-} checksums=()
  [ -z "$source" ] || [[ $source == http*://* ]] || source=$(absolute "$source")
  [ -z "${WMT14_CHECKSUMS:-}" ] || checksums=(--checksums "$(absolute "$WMT14_CHECKSUMS")")
  own "$OUT" "${MADE[@]}"
  hold "$OUT"
  job luna-fairseq fetch wmt14 --out "$OUT" ${source:+--source "$source"} "${checksums[@]}"
  release
}

prepare() {
  [ -f "$OUT/raw/test.de" ] || fail "no text in $OUT/raw: run '$0 download' first"
  local small=()
  [ -z "$SMOKE" ] || small=(--vocab-size 300 --merges 300 --smoke)
  own "$OUT" "${MADE[@]}"
  hold "$OUT"
  job luna-fairseq prepare translation --train "$OUT"/raw/{europarl,commoncrawl,newscommentary} \
    --valid "$OUT/raw/valid" --test "$OUT/raw/test" --recipe "$RECIPE" --workers "$WORKERS" --out "$DATA" "${small[@]}"
  release
}

PIECES=$DATA${SMOKE:+/smoke}
DATA_BIN=$PIECES/data-bin
need_data() { [ -d "$DATA_BIN" ] || fail "no data in $DATA: run '$0 prepare' first"; }
# The folder of a run.
run_of() { echo "$OUT/$1.$RECIPE${TAG:+-$TAG}"; }
need_file() { [ -f "$1" ] || fail "$1 does not exist: run '$0 $2' first"; }

SMOKE_OPTIONS=("${TINY_ENCODER[@]}" "${TINY_DECODER[@]}" ++optimization.max_update=4 ++checkpoint.save_interval_updates=2
  ++common.log_interval=1 ++dataset.max_tokens=1000 ++distributed_training.distributed_world_size=1)

train() {
  need_data
  train_configs configs/translation "$DATA_BIN" "$@"
}

average() {
  local name folder
  for name in "$@"; do
    folder=$(run_of "$name")
    need_file "$folder/.trained" "train $name"
    hold "$folder"
    rm -f "$folder/average.id"
    average_run "$folder" --num-update-checkpoints "$([ -n "$SMOKE" ] && echo 2 || echo "$AVERAGE")"
    identify "$folder"
    release
    echo "averaged: $folder/average.pt"
  done
}

# What was made of an average counts for that one alone. Times do not tell after a copy: FOLDER/average.id is the
# checksum of the average, and FILE.of that of the one which FILE was made of.
identify() { sha256sum < "$1/average.pt" > "$1/average.tmp" && mv "$1/average.tmp" "$1/average.id"; }
# made_of FOLDER FILE: note it.
made_of() { cp "$1/average.id" "$2.of"; }
# current FOLDER FILE: whether FILE is there, and was made of FOLDER's average.
current() { [ -f "$2" ] && cmp -s "$1/average.id" "$2.of"; }

# translate FOLDER SUBSET LENPEN: FOLDER/SUBSET.LENPEN.de, detokenised, whole or not at all.
translate() {
  local folder=$1 subset=$2 lenpen=$3 device=() pieces
  local to=$folder/$subset.$lenpen.de log=$folder/$subset.$lenpen.log
  ! current "$folder" "$to" || return 0
  rm -f "$to.of"
  has_gpu || device=(--cpu --num-workers 0 --data-buffer-size 0)
  if [ "$RECIPE" = moses ]; then
    pieces=(--tokenizer moses --bpe subword_nmt --bpe-codes "$PIECES/codes")
  else
    pieces=(--bpe sentencepiece --sentencepiece-model "$PIECES/sentencepiece.model")
  fi
  logged "$log" fairseq-generate "$DATA_BIN" --user-dir "$USER_DIR" --path "$folder/average.pt" \
    --source-lang en --target-lang de --gen-subset "$subset" --beam 5 --lenpen "$lenpen" --max-tokens 8000 \
    "${device[@]}" "${pieces[@]}" || fail_with $? "generation failed: see $log"
  take_translations "$log" "$(reference "$subset")" "$to"
  made_of "$folder" "$to"
}

reference() {
  if [ -n "$SMOKE" ]; then
    head -n 2000 "$OUT/raw/$1.de" > "$OUT/$1.reference" && echo "$OUT/$1.reference"
  else
    echo "$OUT/raw/$1.de"
  fi
}

tune() {
  need_data
  local name folder lenpen scores best
  for name in "$@"; do
    folder=$(run_of "$name")
    need_file "$folder/average.pt" "average $name"
    scores=
    hold "$folder"
    identify "$folder"
    for lenpen in 0.4 0.6 0.8 1.0 1.2; do
      translate "$folder" valid "$lenpen"
      job luna-fairseq score "$(reference valid)" "$folder/valid.$lenpen.de" > "$folder/valid.$lenpen.json"
      echo "$name, length penalty $lenpen: $(cat "$folder/valid.$lenpen.json")"
      scores+="$(json_value "$folder/valid.$lenpen.json" score) $lenpen"$'\n'
    done
    # Of equal scores the first.
    best=$(printf %s "$scores" | LC_ALL=C sort -s -k 1,1gr | sed -n '1s/.* //p')
    rm -f "$folder/lenpen.of"
    echo "$best" > "$folder/lenpen"
    made_of "$folder" "$folder/lenpen"
    release
    echo "length penalty $best"
  done
}

# The length penalty of a run: LENPEN, or the one that was tuned for this average.
lenpen_of() {
  if [ -n "${LENPEN:-}" ]; then echo "$LENPEN"; elif current "$1" "$1/lenpen"; then cat "$1/lenpen"; else echo 0.6; fi
}

generate() {
  need_data
  local name folder
  for name in "$@"; do
    folder=$(run_of "$name")
    need_file "$folder/average.pt" "average $name"
    hold "$folder"
    identify "$folder"
    translate "$folder" test "$(lenpen_of "$folder")"
    release
    echo "translated: $folder/test.$(lenpen_of "$folder").de"
  done
}

score() {
  local name folder lenpen
  for name in "$@"; do
    folder=$(run_of "$name")
    need_file "$folder/average.pt" "average $name"
    identify "$folder"
    lenpen=$(lenpen_of "$folder")
    need_file "$folder/test.$lenpen.de" "generate $name"
    current "$folder" "$folder/test.$lenpen.de" || fail "$folder/average.pt is not what test.$lenpen.de was made of: run '$0 generate $name' first"
    hold "$folder"
    rm -f "$folder/score.json.of"
    job luna-fairseq score "$(reference test)" "$folder/test.$lenpen.de" > "$folder/score.tmp"
    mv "$folder/score.tmp" "$folder/score.json"
    made_of "$folder" "$folder/score.json"
    add_to_card "$folder" newstest2014 "$folder/score.json"
    release
    echo "$name, newstest2014, length penalty $lenpen: $(cat "$folder/score.json")"
  done
}

table() {
  luna-fairseq table wmt14 "$OUT" --recipe "$RECIPE" --tag "${TAG:-}"
}

run_command "download prepare train average tune generate score table" "$@"
