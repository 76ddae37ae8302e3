# What the scripts that train translation share; sourced by them after experiment.sh.

GENERATE=()
# The folder of a run.
run_of() { echo "$OUT/$1${TAG:+-$TAG}"; }

# train_translation DATA NAME...: configs of configs/translation, each in the folder that run_of prints; OPTIONS is a list
# of words.
train_translation() {
  local data=$1 name
  shift
  for name in "$@"; do
    check_config configs/translation "$name"
    hydra "task.data=$data"
    # shellcheck disable=SC2086
    train_config configs/translation "$name" "$(run_of "$name")" "${HYDRA[@]}" ${OPTIONS:-}
  done
}

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

# score_translation TEST_SET NAME...: average of the last 5 epochs, beam 5, BLEU on the test part of OUT/data-bin, whose
# text is OUT/text/test.raw.de; GENERATE has more options of fairseq-generate.
score_translation() {
  local test_set=$1 name folder cpu=()
  shift
  for name in "$@"; do
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
    add_to_card "$folder" "$test_set" "$folder/bleu.json"
    release
    echo "${folder##*/}: BLEU $(json_value "$folder/bleu.json" score)  $(json_value "$folder/bleu.json" signature)"
  done
}
