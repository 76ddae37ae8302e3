# What the scripts that train translation share; sourced by them after experiment.sh. Those whose data is OUT/data-bin, in
# the pieces of OUT/text, have their commands train and score here, and set FIRST to the command that makes the data.

# preprocess WORKERS TEXT DATA LOG [OPTIONS...]: OUT/DATA of OUT/TEXT/{train,valid,test}.{en,de}, with one dictionary.
preprocess() {
  local tool root=$PWD code=0 workers=$1 text=$2 data=$3 log=$4
  shift 4
  tool=$(type -P fairseq-preprocess) || fail "fairseq-preprocess is not on the PATH: see docs/install.md"
  [[ $tool == /* ]] || tool=$PWD/$tool
  cd "$OUT"  # at a comma in a name fairseq separates files
  logged "$log" "$tool" --source-lang en --target-lang de --joined-dictionary --workers "$workers" \
    --trainpref "$text/train" --validpref "$text/valid" --testpref "$text/test" --destdir "$data" "$@" || code=$?
  cd "$root"
  return "$code"
}

# take_translations LOG REFERENCE FILE: the translations that fairseq-generate has printed, one for each line of
# REFERENCE, whole or not at all.
take_translations() {
  # D- lines are the translations as text, in the order of their length.
  sed -n 's/^D-//p' "$1" | sort -n | cut -f 3 > "$3.tmp"
  [ "$(wc -l < "$3.tmp")" = "$(wc -l < "$2")" ] || fail "$1 does not hold every translation"
  mv "$3.tmp" "$3"
}

# average_run FOLDER WHICH...: FOLDER/average.pt of its checkpoints, by options of luna-fairseq average that say of which.
average_run() {
  local folder=$1
  shift
  logged "$folder/average.log" luna-fairseq average --inputs "$folder/checkpoints" "$@" --output "$folder/average.pt" \
    || fail_with $? "averaging failed: $(tail -n 1 "$folder/average.log") (log: $folder/average.log)"
}

# add_to_card FOLDER TEST_SET SCORES: FOLDER/average.md tells of the scores in a file.
add_to_card() {
  luna-fairseq card "$1/average.pt" --test-set "$2" --score "$3" > /dev/null 2>&1 \
    || fail "no model card for $1/average.pt: run luna-fairseq card by hand to see why"
}

# find_multi30k: FROM, absolute, the folder of scripts/multi30k.sh that this script goes on from; of a smoke run FROM/smoke.
find_multi30k() {
  FROM=${FROM:-multi30k-out}
  [[ $FROM == /* ]] || FROM=$CALLER/$FROM
  FROM=$FROM${SMOKE:+/smoke}
  check_path "$FROM"
}

need_multi30k() {
  [ -f "$FROM/data-bin/.done" ] || fail "no data in $FROM: run scripts/multi30k.sh prepare first, or set FROM to its folder"
}

need_data() { [ -f "$OUT/data-bin/.done" ] || fail "no data in $OUT: run '$0 $FIRST' first"; }

# already SETTINGS: whether the data is there; refused if it was made with others.
already() {
  local before
  [ -f "$OUT/data-bin/.done" ] || return 1
  before=$(cat "$OUT/data-bin/.done")
  [ "$before" = "$1" ] || fail "$OUT holds data made with ${before:-nothing}, and not with ${1:-nothing}: set OUT to another folder"
  echo "already prepared: $OUT/data-bin"
}

# binarise SETTINGS [OPTIONS...]: OUT/data-bin of OUT/text, with options of fairseq-preprocess.
binarise() {
  preprocess 2 text data-bin preprocess.log "${@:2}" || fail_with $? "fairseq-preprocess failed: see $OUT/preprocess.log"
  printf '%s' "$1" > "$OUT/data-bin/.done"
  release
  echo "prepared: $OUT/data-bin"
}

SMOKE_OPTIONS=(++model.encoder_layers=1 ++model.decoder_layers=1 ++optimization.max_epoch=1
  ++common.log_interval=1 ++dataset.max_tokens=2000)

train() {
  need_data
  train_configs configs/translation "$OUT/data-bin" "$@"
}

GENERATE=()
# score_config NAME: average of the last 5 epochs, beam 5, BLEU on the test part of OUT/data-bin, whose
# text is OUT/text/test.raw.de; GENERATE has more options of fairseq-generate,
# and TEST_SET is what the model card calls it.
score_config() {
  local name=$1 folder cpu=()
  check_config configs/translation "$name"
  folder=$(run_of "$name")
  [ -f "$folder/.trained" ] || fail "$name is not trained: run '$0 train $name' first${TAG:+, with TAG=$TAG}"
  hold "$folder"
  average_run "$folder" --num-epoch-checkpoints "$([ -n "$SMOKE" ] && echo 1 || echo 5)"
  has_gpu || cpu=(--cpu)
  logged "$folder/generate.log" fairseq-generate "$OUT/data-bin" --user-dir "$USER_DIR" --path "$folder/average.pt" \
    "${cpu[@]}" --beam 5 --lenpen 1 --max-tokens 4000 --num-workers 0 \
    --bpe sentencepiece --sentencepiece-model "$OUT/text/spm.model" "${GENERATE[@]}" \
    || fail_with $? "generation failed: see $folder/generate.log"
  take_translations "$folder/generate.log" "$OUT/text/test.raw.de" "$folder/test.de"
  job sacrebleu "$OUT/text/test.raw.de" -i "$folder/test.de" -w 2 > "$folder/bleu.json"
  add_to_card "$folder" "$TEST_SET" "$folder/bleu.json"
  release
  echo "${folder##*/}: BLEU $(json_value "$folder/bleu.json" score)  $(json_value "$folder/bleu.json" signature)"
}

score() {
  need_data
  local name
  for name in "$@"; do score_config "$name"; done
}
