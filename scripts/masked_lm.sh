#!/usr/bin/env bash
# Masked-LM pretraining and fine-tuning with the configs of configs/masked_lm.
#
#   scripts/masked_lm.sh pretrain NAME DATA             NAME: a config; DATA: shard folders joined by ":"
#   scripts/masked_lm.sh finetune NAME DATA CHECKPOINT  from a checkpoint, or from "scratch"; prints the dev accuracy;
#                                                       with arch=luna_untied_128 or arch=roberta for those models
#   scripts/masked_lm.sh table                          what is finished next to the paper's figures; the rest "not run"
#
# DATA comes from scripts/prepare_corpus.py and scripts/prepare_finetuning.py. Every run goes on where it stopped.
# Further arguments are options of fairseq-hydra-train, such as arch=roberta or optimization.lr=[0.0001]; TAG=... names
# such a run. Environment: OUT (default masked-lm-out), THREADS (default: PyTorch's), SMOKE=1 (two updates of a tiny
# model in OUT/smoke).
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/masked_lm.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

DEFAULT_OUT=masked-lm-out
. scripts/experiment.sh

SMOKE_OPTIONS=("${TINY_ENCODER[@]}" ++dataset.batch_size=2 ++optimization.max_update=2 ++optimization.max_epoch=0
  "++optimization.update_freq=[1]" ++dataset.max_valid_steps=2 ++common.log_interval=1
  ++distributed_training.distributed_world_size=1)

pretrain() {
  [ $# -ge 2 ] || fail "pretrain takes a config and the data"
  check_config configs/masked_lm "$1"
  local name=$1 data
  data=$(absolute "$2")
  shift 2
  train_config configs/masked_lm "$name" "$OUT/$name${TAG:+-$TAG}" task.data="'$data'" "$@"
}

finetune() {
  [ $# -ge 3 ] || fail "finetune takes a config, the data, and a checkpoint or \"scratch\""
  check_config configs/masked_lm "$1"
  local name=$1 data source=$3 from=scratch start=() folder task subset=valid
  data=$(absolute "$2")
  shift 3
  if [ "$source" != scratch ]; then
    source=$(absolute "$source")
    start=(checkpoint.finetune_from_model="$source")
    # OUT/wikitext2_roberta/checkpoints/checkpoint_best.pt is "wikitext2_roberta".
    from=$(basename "$(dirname "$source")")
    [ "$from" != checkpoints ] || from=$(basename "$(dirname "$(dirname "$source")")")
  fi
  folder=$OUT/$name.$from${TAG:+-$TAG}
  train_config configs/masked_lm "$name" "$folder" task.data="$data" "${start[@]}" "$@"
  task=$(sed -n 's/^  - kind: //p' "configs/masked_lm/$name.yaml")
  [ "$name" != finetune_race ] || subset=test  # what the papers report for RACE
  evaluate "$folder" "$data" "$subset" "config=$name from=$from tag=${TAG:-}" --task "$task" --criterion "$task" \
    ${SMOKE:+--skip-invalid-size-inputs-valid-test}
}

table() {
  python - "$OUT" <<'PY'
import json, re, sys
from pathlib import Path

out = Path(sys.argv[1])
tasks = {"SST-2": "sst2", "QNLI": "qnli", "QQP": "qqp", "RACE": "race", "CSQA": "csqa"}
paper = [  # (row, figures in the order of the tasks, the pretraining config of ours or None); paper, section 4.3
    ("16 GB: BERT-base", "92.7 88.4 89.6 64.2 53.3", None),
    ("16 GB: RoBERTa-base", "93.1 90.9 90.9 65.6 -", "pretrain_roberta_16gb"),
    ("16 GB: Linformer-128", "92.4 90.4 90.2 - -", None),
    ("16 GB: Luna-128, tied", "93.1 91.2 90.8 65.2 53.1", "pretrain_luna_tied_128_16gb"),
    ("16 GB: Luna-128, untied", "- - - - -", "pretrain_luna_untied_128_16gb"),
    ("160 GB: RoBERTa-base", "94.8 92.8 91.9 73.50 63.61", "pretrain_roberta_160gb"),
    ("160 GB: Luna-128, tied", "94.3 91.5 91.2 71.50 61.48", "pretrain_luna_tied_128_160gb"),
    ("160 GB: Luna-128, untied", "94.6 92.2 91.3 72.25 62.08", "pretrain_luna_untied_128_160gb"),
    ("the published luna.base.tied", "- - - - -", "luna.base.tied"),
    ("the published luna.base.untied", "- - - - -", "luna.base.untied"),
]
results = [json.loads(path.read_text()) for path in sorted(out.glob("*/result.json"))]


def ours(config, source):
    values = [
        f"{r['accuracy']:.1f}" + (f" {r['tag']}" if r["tag"] else "")
        for r in results
        if r["config"] == config and r["from"] == source
    ]
    return ", ".join(values) or "not run"


print("Dev accuracy (RACE: test accuracy), the paper's figure and (ours).\n")
print("| pretraining | " + " | ".join(tasks) + " |\n|---" + "|---" * len(tasks) + "|")
for row, figures, source in paper:
    cells = [
        figure + (f" ({ours(f'finetune_{task}', source)})" if source else "")
        for figure, task in zip(figures.split(), tasks.values())
    ]
    print(f"| {row} | " + " | ".join(cells) + " |")

print("\n| WikiText-2, then SST-2 | validation perplexity | parameters | SST-2 dev | SST-2 dev, from scratch |\n|---|---|---|---|---|")
for name in ("luna_tied_32", "luna_untied_32", "roberta"):
    log = out / f"wikitext2_{name}" / "train.log"
    text = log.read_text() if log.exists() and (log.parent / ".trained").exists() else ""
    perplexity = re.findall(r"valid on .*? ppl ([\d.]+)", text)[-1:] or ["not run"]
    parameters = re.findall(r"num. shared model params: ([\d,]+)", text)[-1:] or [""]
    cells = [*perplexity, *parameters, ours(f"sst2_small_{name}", f"wikitext2_{name}"), ours(f"sst2_small_{name}", "scratch")]
    print(f"| {name} | " + " | ".join(cells) + " |")
PY
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  pretrain | finetune | table) $command "$@" ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
