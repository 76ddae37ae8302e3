#!/usr/bin/env bash
# Translation of documents: Multi30k's sentences joined into texts of LENGTH pieces; the Transformer and Luna, the same
# data, sizes, updates and seed.
#
#   scripts/documents.sh prepare        from the pieces of scripts/multi30k.sh
#   scripts/documents.sh train NAME...  NAME: a config, configs/translation/documents_*.yaml; goes on where it stopped
#   scripts/documents.sh score NAME...  average of the last 5 epochs, beam 5, sacreBLEU by document
#   scripts/documents.sh table          what is finished, as a table; the rest says "not run"
#
# Environment: LENGTH (512), FROM (default multi30k-out, the folder of scripts/multi30k.sh; of a smoke run FROM/smoke), OUT
# (default documents-LENGTH-out), THREADS, SMOKE, OPTIONS and TAG as in scripts/multi30k.sh; at equal hours:
# OPTIONS="optimization.stop_time_hours=1" TAG=hour.
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/documents.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

LENGTH=${LENGTH:-512}
DEFAULT_OUT=documents-$LENGTH-out
THREADS=${THREADS:-1}
FROM=${FROM:-multi30k-out}
[[ $FROM == /* ]] || FROM=$CALLER/$FROM
. scripts/experiment.sh
. scripts/translation.sh
FROM=$FROM${SMOKE:+/smoke}
check_path "$FROM"
MADE=(data-bin/.done)
# A document is translated to its end.
GENERATE=(--max-len-a 1.2 --max-len-b 50 --max-source-positions 4096 --max-target-positions 4096)

prepare() {
  [ $# -eq 0 ] || fail "prepare takes no folder: set FROM to that of scripts/multi30k.sh"
  if [ -f "$OUT/data-bin/.done" ]; then echo "already prepared: $OUT/data-bin"; return; fi
  own "$OUT" "${MADE[@]}"
  [ -f "$FROM/data-bin/.done" ] || fail "no data in $FROM: run scripts/multi30k.sh prepare first, or set FROM to its folder"
  hold "$OUT"
  rm -rf "$OUT/text" "$OUT/data-bin"
  job luna-fairseq prepare documents --text "$FROM/text" --length "$LENGTH" --out "$OUT/text"
  preprocess 2 text data-bin preprocess.log --srcdict "$FROM/data-bin/dict.en.txt" \
    || fail_with $? "fairseq-preprocess failed: see $OUT/preprocess.log"
  touch "$OUT/data-bin/.done"
  release
  echo "prepared: $OUT/data-bin"
}

need_data() { [ -f "$OUT/data-bin/.done" ] || fail "no data in $OUT: run '$0 prepare' first"; }

SMOKE_OPTIONS=(++model.encoder_layers=1 ++model.decoder_layers=1 ++optimization.max_epoch=1
  ++common.log_interval=1 ++dataset.max_tokens=2000)

train() {
  need_data
  train_translation "$OUT/data-bin" "$@"
}

score() {
  need_data
  score_translation "test_2016_flickr, documents of $LENGTH" "$@"
}

table() {
  luna-fairseq table documents "$OUT"
}

run_command "prepare train score table" "$@"
