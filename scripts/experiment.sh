# What the experiment scripts share; sourced by them, from the root of the repository.
# Sets SMOKE, OUT (absolute; OUT/smoke for a smoke run, whose numbers must never be taken for real ones) and USER_DIR;
# exports THREADS for torch, if it is set.
#   CALLER      the folder that the user called from
#   DEFAULT_OUT where to write if OUT is not set

SMOKE=${SMOKE:-}
OUT=${OUT:-$PWD/$DEFAULT_OUT}
[[ $OUT == /* ]] || OUT=$CALLER/$OUT
[ -z "$SMOKE" ] || OUT=$OUT/smoke
[ -z "${THREADS:-}" ] || export OMP_NUM_THREADS=$THREADS
# Training on a CPU spends much of its time getting fresh memory from the system: let malloc keep it.
export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184
# What fairseq-hydra-train warns of before it loads the plugin, which would quieten it.
export PYTHONWARNINGS="ignore::UserWarning:fairseq_cli.hydra_train,ignore::UserWarning:hydra.main,ignore::UserWarning:hydra._internal.hydra"

fail() { echo "$(basename "$0"): $*" >&2; exit 1; }

has_gpu() { python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

# absolute PATHS: fairseq-hydra-train may work in another folder; several paths are joined by ":".
absolute() {
  local part parts=() joined
  IFS=: read -ra parts <<< "$1"
  for part in "${parts[@]}"; do
    [[ $part == /* ]] || part=$CALLER/$part
    [ -e "$part" ] || fail "$part does not exist: prepare it first, or correct the name"
    joined=${joined:+$joined:}$part
  done
  echo "$joined"
}

USER_DIR=$(luna-fairseq user-dir) || fail "luna-fairseq is not on the PATH: see the README"

# check_config CONFIG_DIR NAME
check_config() {
  [ -f "$1/$2.yaml" ] || fail "there is no $1/$2.yaml: choose one of $(cd "$1" && ls ./*.yaml | sed 's/\.yaml//; s/^\.\///' | tr '\n' ' ')"
}

# For SMOKE_OPTIONS: the sizes of a model for a smoke run.
TINY_ENCODER=(++model.encoder_layers=1 ++model.encoder_embed_dim=32 ++model.encoder_ffn_embed_dim=32
  ++model.encoder_attention_heads=2)
TINY_DECODER=(++model.decoder_layers=1 ++model.decoder_embed_dim=32 ++model.decoder_ffn_embed_dim=32
  ++model.decoder_attention_heads=2)

# train_translation DATA NAME...: configs of configs/translation, each in the folder that run_of prints; OPTIONS is a list
# of words.
train_translation() {
  local data=$1 name
  shift
  for name in "$@"; do
    check_config configs/translation "$name"
    # shellcheck disable=SC2086
    train_config configs/translation "$name" "$(run_of "$name")" task.data="$data" ${OPTIONS:-}
  done
}

# check_trained FOLDER: with a world size and no GPU fairseq may start no process, and end well.
check_trained() {
  compgen -G "$1/checkpoints/*.pt" > /dev/null || fail "nothing was trained: see $1/train.log"
}

# train_config CONFIG_DIR NAME FOLDER OPTIONS...: train until it is done; the log grows over restarts. SMOKE_OPTIONS
# make a smoke run small.
train_config() {
  local config_dir=$1 name=$2 folder=$3 smoke=() changed
  shift 3
  mkdir -p "$folder"
  # Results of other data or options must not be taken for those of this run.
  if [ -f "$folder/options" ] && ! printf '%s\n' "$@" | cmp -s - "$folder/options"; then
    fail "$folder holds a run with other data or options ($(tr '\n' ' ' < "$folder/options")): repeat those, or set TAG to name this one"
  fi
  [ -f "$folder/options" ] || printf '%s\n' "$@" > "$folder/options"
  changed=$(find "$config_dir" -name '*.yaml' -newer "$folder/options" | head -n 1)
  [ -z "$changed" ] || echo "$changed is newer than $folder: if it changes this run, remove that folder, or set TAG"
  if [ -f "$folder/.trained" ]; then echo "already trained: $folder"; return; fi
  [ -z "$SMOKE" ] || smoke=("${SMOKE_OPTIONS[@]}")
  local device=()
  has_gpu || device=(common.cpu=true ++common.fp16=false ++distributed_training.distributed_world_size=1
    dataset.num_workers=0 dataset.data_buffer_size=0)
  echo "training $name; log: $folder/train.log"
  fairseq-hydra-train --config-dir "$config_dir" --config-name "$name" \
    common.user_dir="$USER_DIR" checkpoint.save_dir="$folder/checkpoints" \
    hydra.run.dir="$folder/hydra" "${device[@]}" "$@" "${smoke[@]}" 2>&1 \
    | tee -a "$folder/train.log" | { grep --line-buffered -E "valid on|train_inner" || true; } | cut -c1-160 \
    || fail "training failed: $(grep -v -e HYDRA_FULL_ERROR -e '^[[:space:]]*$' "$folder/train.log" | tail -n 1) (log: $folder/train.log)"
  check_trained "$folder"
  touch "$folder/.trained"
}

# evaluate FOLDER DATA SUBSET "KEY=VALUE..." OPTIONS...: accuracy of the best checkpoint in FOLDER by fairseq-validate with
# OPTIONS; FOLDER/result.json keeps it beside the keys, and is printed.
evaluate() {
  local folder=$1 data=$2 subset=$3 keys=$4 cpu=()
  shift 4
  if [ ! -f "$folder/result.json" ]; then
    has_gpu || cpu=(--cpu)
    fairseq-validate "$data" --user-dir "$USER_DIR" --path "$folder/checkpoints/checkpoint_best.pt" "${cpu[@]}" \
      --distributed-world-size 1 --valid-subset "$subset" --batch-size 16 --required-batch-size-multiple 1 \
      --num-workers 0 --data-buffer-size 0 --log-format simple "$@" > "$folder/validate.log" 2>&1 \
      || fail "evaluation failed: see $folder/validate.log"
    python - "$folder" "$keys" <<'PY'
import json, re, sys
from pathlib import Path

folder = Path(sys.argv[1])
accuracy = re.findall(r"valid on '\w+' subset \|.*? accuracy ([\d.]+)", (folder / "validate.log").read_text())[-1]
result = {**dict(pair.split("=", 1) for pair in sys.argv[2].split(" ")), "accuracy": float(accuracy)}
(folder / "result.tmp").write_text(json.dumps(result) + "\n")
(folder / "result.tmp").rename(folder / "result.json")
PY
  fi
  cat "$folder/result.json"
}
