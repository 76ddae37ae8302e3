#!/usr/bin/env bash
# Long Range Arena: prepare the data, train, test, and collect the paper's table.
#   lra.sh row CONFIG LAYERS [FOLDER] [OPTIONS...]    prepare, train, test: one cell of the table
#   lra.sh prepare CONFIG [FOLDER]                    the data alone
#   lra.sh train CONFIG LAYERS [OPTIONS...]           Hydra options, such as optimization.max_update=100
#   lra.sh test CONFIG LAYERS                         accuracy of the best checkpoint on the test set
#   lra.sh table                                      what is finished, next to the paper's figures
# CONFIG is one of configs/lra, LAYERS luna_16, luna_16_bias, luna_128, luna_256 or transformer. FOLDER holds the
# published files, which text, retrieval and image need; listops and pathfinder are generated if there is none.
# Environment: OUT (lra-out), SMOKE=1 (a minute on a CPU), THREADS, TAG (a name for a run with other options).
set -euo pipefail

CALLER=$PWD
cd "$(dirname "$0")/.."

DEFAULT_OUT=lra-out
. scripts/experiment.sh
MADE=('*/hydra/.hydra' 'data/*/settings.json' 'data/*/smoke/settings.json')

SMOKE_OPTIONS=(++model.encoder_layers=1 ++model.encoder_embed_dim=16 ++model.encoder_ffn_embed_dim=16
  ++model.encoder_attention_heads=2 ++model.classifier_out_dim=16 ++model.attention_dropout=0 ++common.log_interval=1
  ++dataset.batch_size=2 ++optimization.max_update=2 ++dataset.max_valid_steps=2
  ++dataset.validate_interval_updates=0 ++checkpoint.save_interval_updates=0)

# What luna-fairseq prepare is told, and the folder of the data: configs of one task share it.
data_of() {
  case $1 in
    text_small) echo "text text_small --hold-out 1000" ;;
    image_small) echo "image image" ;;
    listops_small) echo "listops listops_small --min-length 64 --max-length 256" ;;
    pathfinder | pathfinder_small) echo "pathfinder pathfinder --size 32" ;;
    pathfinder128) echo "pathfinder pathfinder128 --size 128" ;;
    digits) echo "digits digits --as pixels" ;;
    listops | text | retrieval | image) echo "$1 $1" ;;
    *) fail "there is no data for $1: add it to scripts/lra.sh" ;;
  esac
}

data_folder() {
  local words
  read -r -a words <<< "$(data_of "$1")"
  echo "$OUT/data/${words[1]}${SMOKE:+/smoke}"
}

prepare() {
  [ $# -ge 1 ] && [ $# -le 2 ] || fail "prepare takes a config, and the folder with the published files"
  check_config configs/lra "$1"
  local words folder=${2:-} from=()
  read -r -a words <<< "$(data_of "$1")"
  if [ -n "$folder" ]; then
    folder=$(absolute "$folder")
    from=(--data "$folder")
  elif [[ ${words[0]} =~ ^(text|retrieval|image)$ ]] && [ ! -d "$(data_folder "$1")" ]; then
    fail "$1 needs the folder with the published files: $0 prepare $1 FOLDER"
  fi
  if [ -d "$(data_folder "$1")" ] && [ -z "$folder" ]; then return; fi
  own "$OUT" "${MADE[@]}"
  job luna-fairseq prepare "${words[0]}" --out "$OUT/data/${words[1]}" "${words[@]:2}" "${from[@]}" ${SMOKE:+--smoke}
}

check_row() {
  check_config configs/lra "$1"
  check_config configs/lra/layers "$2"
}

row_folder() { echo "$OUT/$1.$2${TAG:+-$TAG}"; }

train() {
  [ $# -ge 2 ] || fail "train takes a config and the layers"
  check_row "$1" "$2"
  local data
  data=$(data_folder "$1")
  [ -d "$data" ] || fail "no data in $data: run '$0 prepare $1' first"
  hydra "task.data=$data"
  train_config configs/lra "$1" "$(row_folder "$1" "$2")" layers="$2" "${HYDRA[@]}" "${@:3}"
}

test_row() {
  [ $# -eq 2 ] || fail "test takes a config and the layers"
  check_row "$1" "$2"
  local folder task=lra-text
  folder=$(row_folder "$1" "$2")
  [ -f "$folder/.trained" ] || fail "$1 with $2 is not trained: run '$0 train $1 $2' first"
  ! grep -q "^  - input: pixels" "configs/lra/$1.yaml" || task=lra-image
  evaluate "$folder" "$(data_folder "$1")" test "config=$1" "layers=$2" "tag=${TAG:-}" -- --task "$task" \
    --criterion lra_cross_entropy --save-predictions "$folder/predictions.tsv"
}

row() {
  [ $# -ge 2 ] || fail "row takes a config, the layers, and the folder with the published files if it needs them"
  local config=$1 layers=$2 files=()
  check_row "$config" "$layers"  # before the work begins
  shift 2
  if [ $# -ge 1 ] && [[ $1 != *=* ]]; then
    files=("$1")
    shift
  fi
  prepare "$config" "${files[@]}"
  train "$config" "$layers" "$@"
  test_row "$config" "$layers"
}

table() { luna-fairseq table lra "$OUT"; }

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  prepare | train | row | table) $command "$@" ;;
  test) test_row "$@" ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "scripts/${0##*/}"; exit 2 ;;
esac
