#!/usr/bin/env bash
# Language models on WikiText-2: luna_lm and fairseq's transformer_lm, the same pieces, sizes, updates and seed.
#
#   scripts/language_model.sh prepare FOLDER   FOLDER holds train.txt and valid.txt; 8,000 pieces. The
#                                              figures of docs/language-model.md are for WikiText-2's test part as
#                                              train.txt; any other text will do, and none of them is for it
#   scripts/language_model.sh train NAME...    NAME: a config, configs/language_model/NAME.yaml; goes on where it stopped
#   scripts/language_model.sh score NAME...    perplexity of the best checkpoint on the validation text: in blocks, behind a
#                                              window of half a block, and (Luna) with the state of all of the text before
#   scripts/language_model.sh table            what is finished, as a table; the rest says "not run"
#
# Environment: OUT (default language-model-out), THREADS (default 1), SMOKE=1 (a tiny run in OUT/smoke); OPTIONS and TAG for
# a search: OPTIONS="optimization.lr=[0.002] optimization.stop_time_hours=1" TAG=hour names the run NAME-hour.
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/language_model.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

DEFAULT_OUT=language-model-out
THREADS=${THREADS:-1}
. scripts/experiment.sh
MADE=()

prepare() {
  [ $# -eq 1 ] || fail "prepare takes the folder with the text"
  local folder file pieces=8000
  folder=$(absolute "$1")
  for file in train.txt valid.txt; do
    [ -f "$folder/$file" ] || fail "$folder/$file does not exist: name the folder with WikiText-2's text"
  done
  if [ -f "$OUT/corpus/.done" ]; then echo "already prepared: $OUT/corpus"; return; fi
  own "$OUT" "${MADE[@]}"
  tell_other_text "$folder" docs/language-model.md "train.txt 4358 WikiText-2's test part" \
    "valid.txt 3760 WikiText-2's validation part"
  hold "$OUT"
  if [ -n "$SMOKE" ]; then
    mkdir -p "$OUT/text"
    for file in train.txt valid.txt; do head -n 40 "$folder/$file" > "$OUT/text/$file"; done
    folder=$OUT/text
    # More than its characters, and few enough for any text.
    pieces=$(python -c 'import sys; print(40 + len(set(open(sys.argv[1], encoding="utf-8").read())))' "$folder/train.txt" 2> /dev/null) \
      || fail "$1/train.txt is no text in UTF-8: convert it"
  fi
  job luna-fairseq prepare corpus --train "$folder/train.txt" --valid "$folder/valid.txt" \
    --vocab-size "$pieces" --shards 1 --workers 2 --out "$OUT/corpus"
  touch "$OUT/corpus/.done"
  release
  echo "prepared: $OUT/corpus"
}

DATA=$OUT/corpus/data-bin/shard0
need_data() { [ -f "$OUT/corpus/.done" ] || fail "no data in $OUT: run '$0 prepare FOLDER' first"; }

SMOKE_OPTIONS=("${TINY_DECODER[@]}" ++model.decoder_input_dim=32 ++model.decoder_output_dim=32 ++task.tokens_per_sample=16
  ++dataset.batch_size=2 ++optimization.max_update=2 ++common.log_interval=1)

train() {
  need_data
  train_configs configs/language_model "$DATA" "$@"
}

# perplexity FOLDER KIND OPTIONS...: by fairseq-eval-lm with OPTIONS.
perplexity() {
  local log=$1/eval.$2.log cpu=() found
  has_gpu || cpu=(--cpu)
  logged "$log" fairseq-eval-lm "$DATA" --user-dir "$USER_DIR" --path "$1/checkpoints/checkpoint_best.pt" \
    --gen-subset valid --num-workers 0 --distributed-world-size 1 "${cpu[@]}" "${@:3}" \
    || fail_with $? "scoring failed: see $log"
  found=$(sed -nE 's/.*Perplexity: ([0-9.]+).*/\1/p' "$log" | tail -n 1)
  [ -n "$found" ] || fail "scoring failed: no perplexity in $log"
  FOUND+=("\"$2\": $found")
}

score() {
  need_data
  local name folder length
  for name in "$@"; do
    check_config configs/language_model "$name"
    folder=$(run_of "$name")
    [ -f "$folder/.trained" ] || fail "$name is not trained: run '$0 train $name' first${TAG:+, with TAG=$TAG}"
    # Runs that were scored before there was this way of carrying lack its figure.
    if [ ! -f "$folder/perplexity.json" ] || { [[ $name != *transformer* ]] && ! grep -q '"faded"' "$folder/perplexity.json"; }; then
      hold "$folder"
      length=$(sed -nE 's/^  tokens_per_sample: ([0-9]+)$/\1/p' "$folder/hydra/.hydra/config.yaml") \
        || fail "$folder has no hydra/.hydra/config.yaml to take the length of a block from: train it again"
      FOUND=()
      perplexity "$folder" blocks --tokens-per-sample "$length" --batch-size 8
      perplexity "$folder" window --tokens-per-sample "$length" --batch-size 8 --context-window $((length / 2))
      if [[ $name != *transformer* ]]; then
        perplexity "$folder" carried --tokens-per-sample "$length" --carry-state
        perplexity "$folder" restarted --tokens-per-sample "$length" --carry-state --carry-positions restart
        perplexity "$folder" faded --tokens-per-sample "$length" --carry-state --carry-positions restart \
          --carry-at-most "$length"
      fi
      (IFS=,; echo "{${FOUND[*]}}" > "$folder/perplexity.tmp")
      mv "$folder/perplexity.tmp" "$folder/perplexity.json"
      release
    fi
    echo "$(basename "$folder"): $(cat "$folder/perplexity.json")"
  done
}

table() {
  luna-fairseq table language-model "$OUT"
}

run_command "prepare train score table" "$@"
