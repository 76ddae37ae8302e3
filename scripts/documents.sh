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
. scripts/experiment.sh
. scripts/translation.sh
find_multi30k
MADE=(data-bin/.done)
FIRST=prepare TEST_SET="test_2016_flickr, documents of $LENGTH"
# A document is translated to its end.
GENERATE=(--max-len-a 1.2 --max-len-b 50 --max-source-positions 4096 --max-target-positions 4096)

prepare() {
  [ $# -eq 0 ] || fail "prepare takes no folder: set FROM to that of scripts/multi30k.sh"
  if already "LENGTH=$LENGTH"; then return; fi
  own "$OUT" "${MADE[@]}"
  need_multi30k
  hold "$OUT"
  rm -rf "$OUT/text" "$OUT/data-bin"
  job luna-fairseq prepare documents --text "$FROM/text" --length "$LENGTH" --out "$OUT/text"
  binarise "LENGTH=$LENGTH" --srcdict "$FROM/data-bin/dict.en.txt"
}

table() {
  luna-fairseq table documents "$OUT"
}

run_command "prepare train score table" "$@"
