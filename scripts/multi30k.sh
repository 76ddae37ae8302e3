#!/usr/bin/env bash
# Multi30k English-German: fairseq's Transformer and Luna, the same vocabulary, sizes, updates and seed.
#
#   scripts/multi30k.sh prepare FOLDER   FOLDER holds {train,val,test_2016_flickr}.{en,de}, untokenised
#   scripts/multi30k.sh train NAME...    NAME: a config, configs/translation/NAME.yaml; goes on where it stopped
#   scripts/multi30k.sh score NAME...    average of the last 5 epochs, beam 5, sacreBLEU on test_2016_flickr
#   scripts/multi30k.sh table            what is finished, as a table; the rest says "not run"
#
# Environment: OUT (default multi30k-out), THREADS (default 1), SMOKE=1 (a tiny run in OUT/smoke); OPTIONS and TAG for a
# search: OPTIONS="optimization.lr=[0.004] lr_scheduler.warmup_updates=300" TAG=lr4e-3 names the run NAME-lr4e-3.
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/multi30k.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$0")/.."

DEFAULT_OUT=multi30k-out
THREADS=${THREADS:-1}
. scripts/experiment.sh

prepare() {
  [ $# -eq 1 ] || fail "prepare takes the folder with the text"
  local folder file
  folder=$(absolute "$1")
  for file in {train,val,test_2016_flickr}.{en,de}; do
    [ -f "$folder/$file" ] || fail "$folder/$file does not exist: name the folder with Multi30k's text"
  done
  if [ -f "$OUT/data-bin/.done" ]; then echo "already prepared: $OUT/data-bin"; return; fi
  rm -rf "$OUT/text" "$OUT/data-bin"
  mkdir -p "$OUT/text"
  echo "learning 4,000 joint pieces and encoding"
  python - "$folder" "$OUT/text" "${SMOKE:+400}" <<'PY'
import sys
import sentencepiece

folder, out, lines = sys.argv[1], sys.argv[2], int(sys.argv[3] or 0) or None
for split, name in (("train", "train"), ("valid", "val"), ("test", "test_2016_flickr")):
    for lang in ("en", "de"):
        with open(f"{folder}/{name}.{lang}") as source, open(f"{out}/{split}.raw.{lang}", "w") as target:
            target.writelines(line.strip() + "\n" for line in source.readlines()[: lines and lines // (4 if split == "test" else 1)])
sentencepiece.SentencePieceTrainer.train(
    input=f"{out}/train.raw.en,{out}/train.raw.de",
    model_prefix=f"{out}/spm",
    model_type="bpe",
    vocab_size=500 if lines else 4000,
    character_coverage=1.0,
    minloglevel=2,
)
pieces = sentencepiece.SentencePieceProcessor(model_file=f"{out}/spm.model")
for split in ("train", "valid", "test"):
    for lang in ("en", "de"):
        with open(f"{out}/{split}.raw.{lang}") as source, open(f"{out}/{split}.{lang}", "w") as target:
            target.writelines(" ".join(pieces.encode(line.strip(), out_type=str)) + "\n" for line in source)
PY
  fairseq-preprocess --source-lang en --target-lang de --joined-dictionary --workers 2 \
    --trainpref "$OUT/text/train" --validpref "$OUT/text/valid" --testpref "$OUT/text/test" \
    --destdir "$OUT/data-bin" > "$OUT/preprocess.log" 2>&1 || fail "fairseq-preprocess failed: see $OUT/preprocess.log"
  touch "$OUT/data-bin/.done"
  echo "prepared: $OUT/data-bin"
}

# The folder of a run.
run_of() { echo "$OUT/$1${TAG:+-$TAG}"; }
need_data() { [ -f "$OUT/data-bin/.done" ] || fail "no data in $OUT: run '$0 prepare FOLDER' first"; }

SMOKE_OPTIONS=(++model.encoder_layers=1 ++model.decoder_layers=1 ++optimization.max_epoch=1
  ++common.log_interval=1 ++dataset.max_tokens=2000)

train() {
  need_data
  train_translation "$OUT/data-bin" "$@"
}

score() {
  need_data
  local name
  for name in "$@"; do
    check_config configs/translation "$name"
    [ -f "$(run_of "$name")/.trained" ] || fail "$name is not trained: run '$0 train $name' first${TAG:+, with TAG=$TAG}"
    name=$name${TAG:+-$TAG}
    luna-fairseq average --inputs "$OUT/$name/checkpoints" --num-epoch-checkpoints "$([ -n "$SMOKE" ] && echo 1 || echo 5)" \
      --output "$OUT/$name/average.pt" > "$OUT/$name/average.log" 2>&1 || fail "averaging failed: see $OUT/$name/average.log"
    fairseq-generate "$OUT/data-bin" --user-dir "$USER_DIR" --path "$OUT/$name/average.pt" --cpu \
      --beam 5 --lenpen 1 --max-tokens 4000 --num-workers 0 --bpe sentencepiece --sentencepiece-model "$OUT/text/spm.model" \
      > "$OUT/$name/generate.log" 2>&1 || fail "generation failed: see $OUT/$name/generate.log"
    grep '^D-' "$OUT/$name/generate.log" | sed 's/^D-//' | sort -n | cut -f3 > "$OUT/$name/test.de"
    [ "$(wc -l < "$OUT/$name/test.de")" = "$(wc -l < "$OUT/text/test.raw.de")" ] || fail "$name did not translate every sentence"
    sacrebleu "$OUT/text/test.raw.de" -i "$OUT/$name/test.de" -w 2 > "$OUT/$name/bleu.json"
    luna-fairseq card "$OUT/$name/average.pt" --test-set test_2016_flickr --score "$OUT/$name/bleu.json" > /dev/null 2>&1 \
      || fail "no model card for $OUT/$name/average.pt: run luna-fairseq card by hand to see why"
    python - "$OUT/$name" <<'PY'
import json, sys
score = json.load(open(f"{sys.argv[1]}/bleu.json"))
print(f"{sys.argv[1].rsplit('/', 1)[1]}: BLEU {score['score']}  {score['signature']}")
PY
  done
}

table() {
  python - "$OUT" <<'PY'
import json, re, statistics, sys
from pathlib import Path

out = Path(sys.argv[1])
print("| config | BLEU | validation perplexity | parameters | training words/s | generation sentences/s |")
print("|---|---|---|---|---|---|")
configs = sorted(path.stem for path in Path("configs/translation").glob("multi30k_*.yaml"))
runs = [run.name for config in configs for run in sorted(out.glob(f"{config}-*"))]
for name in sorted(configs + runs):
    run = out / name
    if not (run / "bleu.json").exists():
        print(f"| {name} | not run | | | | |")
        continue
    bleu = json.loads((run / "bleu.json").read_text())
    log = (run / "train.log").read_text()
    ppl = min(float(x) for x in re.findall(r"valid on .*? ppl ([\d.]+)", log))
    parameters = re.findall(r"num. shared model params: ([\d,]+)", log)[-1]
    words = statistics.median(float(x) for x in re.findall(r"train_inner.*? wps=([\d.]+)", log))
    speed = re.findall(r"\(([\d.]+) sentences/s", (run / "generate.log").read_text())[-1]
    print(f"| {name} | {bleu['score']} | {ppl} | {parameters} | {words:.0f} | {speed} |")
    signature = bleu["signature"]
print(f"\n{signature}" if "signature" in dir() else "")
PY
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  prepare | train | score | table) $command "$@" ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
