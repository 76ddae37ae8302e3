#!/usr/bin/env bash
# Masked-LM pretraining and fine-tuning with the configs of configs/masked_lm.
#
#   scripts/masked_lm.sh pretrain NAME DATA             NAME: a config; DATA: shard folders joined by ":"
#   scripts/masked_lm.sh finetune NAME DATA CHECKPOINT  from a checkpoint, or from "scratch"; prints the dev accuracy;
#                                                       with arch=luna_untied_128 or arch=roberta for those models
#   scripts/masked_lm.sh table                          what is finished next to the paper's figures; the rest "not run"
#
# DATA comes from luna-fairseq prepare corpus and prepare glue, race or csqa. Every run goes on where it stopped.
# Further arguments are options of fairseq-hydra-train, such as arch=roberta or optimization.lr=[0.0001]; TAG=... names
# such a run. Environment: OUT (default masked-lm-out), THREADS (default: PyTorch's), SMOKE=1 (two updates of a tiny
# model in OUT/smoke).
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/masked_lm.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

DEFAULT_OUT=masked-lm-out
. scripts/experiment.sh
MADE=('*/hydra/.hydra')

SMOKE_OPTIONS=("${TINY_ENCODER[@]}" ++dataset.batch_size=2 ++optimization.max_update=2 ++optimization.max_epoch=0
  "++optimization.update_freq=[1]" ++dataset.max_valid_steps=2 ++common.log_interval=1
  ++distributed_training.distributed_world_size=1)

pretrain() {
  [ $# -ge 2 ] || fail "pretrain takes a config and the data"
  check_config configs/masked_lm "$1"
  local name=$1 data
  data=$(absolute "$2")
  shift 2
  hydra "task.data=$data"
  train_config configs/masked_lm "$name" "$(run_of "$name")" "${HYDRA[@]}" "$@"
}

finetune() {
  [ $# -ge 3 ] || fail "finetune takes a config, the data, and a checkpoint or \"scratch\""
  check_config configs/masked_lm "$1"
  local name=$1 data source=$3 from=scratch start=() folder task subset=valid
  data=$(absolute "$2")
  shift 3
  if [ "$source" != scratch ]; then
    source=$(absolute "$source")
    start=("checkpoint.finetune_from_model=$source")
    # OUT/wikitext2_roberta/checkpoints/checkpoint_best.pt is "wikitext2_roberta".
    from=$(basename "$(dirname "$source")")
    [ "$from" != checkpoints ] || from=$(basename "$(dirname "$(dirname "$source")")")
  fi
  folder=$OUT/$name.$from${TAG:+-$TAG}
  hydra "task.data=$data" "${start[@]}"
  train_config configs/masked_lm "$name" "$folder" "${HYDRA[@]}" "$@"
  task=$(sed -n 's/^  - kind: //p' "configs/masked_lm/$name.yaml")
  [ "$name" != finetune_race ] || subset=test  # what the papers report for RACE
  evaluate "$folder" "$data" "$subset" "config=$name" "from=$from" "tag=${TAG:-}" -- --task "$task" --criterion "$task" \
    ${SMOKE:+--skip-invalid-size-inputs-valid-test}
}

table() {
  luna-fairseq table masked-lm "$OUT"
}

run_command "pretrain finetune table" "$@"
