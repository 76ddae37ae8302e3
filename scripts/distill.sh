#!/usr/bin/env bash
# Sequence-level distillation (Kim and Rush 2016) on Multi30k: a model learns from another one's translations.
#
#   scripts/distill.sh translate TEACHER  the training text by beam 5; TEACHER: a run that scripts/multi30k.sh has scored
#   scripts/distill.sh filter             leave out what went wrong, and binarise; validation and test stay as they were
#   scripts/distill.sh train NAME...      NAME: a config, configs/translation/NAME.yaml; goes on where it stopped
#   scripts/distill.sh score NAME...      average of the last 5 epochs, beam 5, sacreBLEU on test_2016_flickr
#   scripts/distill.sh table              what is finished, as a table; the rest says "not run"
#
# Environment: FROM (default multi30k-out, the folder of scripts/multi30k.sh; of a smoke run FROM/smoke), OUT (default
# distill-out), FILTER_OPTIONS (of luna-fairseq prepare distilled: FILTER_OPTIONS="--ratio 1.5 --with-references"), THREADS,
# SMOKE, OPTIONS and TAG as in scripts/multi30k.sh.
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/distill.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

DEFAULT_OUT=distill-out
THREADS=${THREADS:-1}
. scripts/experiment.sh
. scripts/translation.sh
find_multi30k
MADE=(translations/.done)
FIRST=filter TEST_SET=test_2016_flickr
SHARDS=$([ -n "$SMOKE" ] && echo 2 || echo 10)

translate() {
  [ $# -eq 1 ] || fail "translate takes the name of one run in $FROM"
  own "$OUT" "${MADE[@]}"
  local model="$FROM/$1/average.pt" shard teacher cpu=()
  need_multi30k
  [ -f "$model" ] || fail "$model does not exist: train and score $1 by scripts/multi30k.sh first"
  [[ $FROM != *:* ]] || fail "FROM is $FROM, and at a colon fairseq separates files: rename the folder"
  hold "$OUT"
  mkdir -p "$OUT/translations"
  # Translations of two teachers must not be mixed.
  teacher="$OUT/translations/teacher"
  if [ -f "$teacher" ] && ! sha256sum --status -c "$teacher"; then
    fail "$OUT holds translations of another teacher than $model: set OUT to another folder"
  fi
  [ -f "$teacher" ] || sha256sum "$model" > "$teacher"
  has_gpu || cpu=(--cpu)
  for ((shard = 0; shard < SHARDS; shard++)); do
    [ ! -f "$OUT/translations/$shard.log" ] || continue
    echo "translating the training text with $1, part $((shard + 1)) of $SHARDS"
    logged "$OUT/translations/$shard.tmp" fairseq-generate "$FROM/data-bin" --user-dir "$USER_DIR" --path "$model" "${cpu[@]}" \
      --gen-subset train --beam 5 --lenpen 1 --max-tokens 4000 --num-workers 0 --num-shards "$SHARDS" --shard-id "$shard" \
      || fail_with $? "translating failed: see $OUT/translations/$shard.tmp"
    mv "$OUT/translations/$shard.tmp" "$OUT/translations/$shard.log"
  done
  touch "$OUT/translations/.done"
  release
  echo "translated: $OUT/translations"
}

filter() {
  [ -f "$OUT/translations/.done" ] || fail "no translations in $OUT: run '$0 translate TEACHER' first"
  local settings=FILTER_OPTIONS=${FILTER_OPTIONS:-}
  if already "$settings"; then return; fi
  local small=()
  [ -z "$SMOKE" ] || small=(--with-references)  # a teacher of a smoke run has nothing to say
  hold "$OUT"
  rm -rf "$OUT/text" "$OUT/data-bin"
  # shellcheck disable=SC2086
  job luna-fairseq prepare distilled --text "$FROM/text/train" --translations "$OUT"/translations/*.log --out "$OUT/text" \
    "${small[@]}" ${FILTER_OPTIONS:-}
  cp "$FROM"/text/valid.{en,de} "$FROM"/text/test.{en,de} "$FROM/text/test.raw.de" "$FROM/text/spm.model" "$OUT/text"
  binarise "$settings" --srcdict "$FROM/data-bin/dict.en.txt"
}

table() {
  luna-fairseq table multi30k "$OUT"
}

run_command "translate filter train score table" "$@"
