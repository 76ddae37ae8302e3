# What the experiment scripts share; sourced by them, from the folder with configs/ and scripts/: the root of the
# repository, or luna_fairseq/share once it is installed. Nothing is written there.
# Sets SMOKE, OUT (absolute; OUT/smoke for a smoke run, whose numbers must never be taken for real ones) and USER_DIR;
# exports THREADS for torch, if it is set.
# AROUND is the folder around that of a smoke run, or empty.
#   CALLER      the folder that the user called from
#   DEFAULT_OUT where to write if OUT is not set, in that folder

# fail_with CODE MESSAGE
fail_with() {
  echo "$(basename "$0"): ${*:2}" >&2 || true
  exit "$1"
}
fail() { fail_with 1 "$@"; }

# check_path PATH: refuse what fairseq takes for something else, however it is quoted.
check_path() {
  [[ $1 != *$'\n'* ]] || fail "$(printf %q "$1") has a line break: rename the folder"
  # shellcheck disable=SC2016
  [[ $1 != *'${'* ]] || fail "$1 has a \${, behind which fairseq looks for the name of an option: rename the folder"
}

SMOKE=${SMOKE:-} AROUND=
OUT=${OUT:-$DEFAULT_OUT}
[[ $OUT == /* ]] || OUT=$CALLER/$OUT
[ -z "$SMOKE" ] || AROUND=$OUT OUT=$OUT/smoke
check_path "$OUT"
[[ $OUT != *:* ]] || fail "OUT is $OUT, and at a colon fairseq separates folders: rename the folder, or set OUT to another one"
[ -z "${THREADS:-}" ] || export OMP_NUM_THREADS=$THREADS
# Training on a CPU spends much of its time getting fresh memory from the system: let malloc keep it.
export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184
# What fairseq-hydra-train warns of before it loads the plugin, which would quieten it.
export PYTHONWARNINGS="ignore::UserWarning:fairseq_cli.hydra_train,ignore::UserWarning:hydra.main,ignore::UserWarning:hydra._internal.hydra"

. scripts/processes.sh

# own FOLDER [MADE...]: make FOLDER, or take it if it is empty, and leave a mark there. What has the mark of this script
# may be written over and removed, and nothing else. A folder of before there were marks is known by one of the files
# MADE (patterns). A smoke run inside is not looked at, and is begun in no folder of somebody else's.
own() {
  local folder=$1 mark said
  mark=.made-by-$(basename "$0")
  shift
  [ -z "$AROUND" ] || [ "$folder" != "$OUT" ] || [ -e "$folder" ] || check_own "$AROUND" "$mark" "$@"
  [ ! -e "$folder" ] && [ ! -L "$folder" ] || [ -d "$folder" ] || fail "$folder is not a folder: set OUT to another one"
  said=$(LC_ALL=C mkdir -p "$folder" 2>&1) || fail "$folder cannot be made (${said##*: }): set OUT to another folder"
  # In this order another script that takes it at the same moment does no harm.
  check_own "$folder" "$mark" "$@"
  [ -e "$folder/$mark" ] || { echo "This script writes over and removes what is here." > "$folder/$mark"; } 2> /dev/null \
    || fail "nothing can be written in $folder: set OUT to another folder"
}

# check_own FOLDER MARK [MADE...]: refuse a folder that holds something which this script did not make.
check_own() {
  local folder=$1 mark=$2 found made
  shift 2
  [ -e "$folder" ] || return 0
  [ -d "$folder" ] || fail "$folder is not a folder: set OUT to another one"
  found=$(find -H "$folder" -mindepth 1 -maxdepth 1 ! -name smoke ! -name lost+found ! -name .DS_Store -print -quit 2> /dev/null) \
    || fail "$folder cannot be looked into: set OUT to another folder"
  if [ -n "$found" ] && [ ! -e "$folder/$mark" ]; then
    for made; do
      # By a subshell: the name of the folder may be a pattern itself.
      ! (cd "$folder" && compgen -G "$made" > /dev/null) || found=
    done
    [ -z "$found" ] || fail "$folder holds ${found##*/}, which this script did not make: set OUT to a new or empty folder"
  fi
}

# quoted VALUE: for Hydra's command line, whatever characters it has: in quotes, a backslash before each quote, and two
# for each one that stands before a quote or at the end.
quoted() {
  check_path "$1"
  printf '%s\n' "$1" | LC_ALL=C sed -E "s/(\\\\+)('|\$)/\\1\\1\\2/g; s/'/\\\\'/g; s/.*/'&'/"
}

# hydra KEY=VALUE...: sets HYDRA to these options of fairseq-hydra-train.
hydra() {
  local option
  HYDRA=()
  for option; do HYDRA+=("${option%%=*}=$(quoted "${option#*=}")"); done
}

# count_gpus: sets GPUS to how many torch finds. A question that was not answered, such as one that was killed, is no "none".
count_gpus() {
  local code=0
  GPUS=$(python -c '
try:
    import torch
    print(torch.cuda.device_count() if torch.cuda.is_available() else 0)
except Exception as error:
    print(type(error).__name__, error)
') || code=$?
  [[ $code == 0 && $GPUS =~ ^[0-9]+$ ]] \
    || fail "python did not say whether there is a GPU (exit code $code${GPUS:+, $GPUS}): see if it can import torch, and try again"
}

has_gpu() {
  count_gpus
  [ "$GPUS" != 0 ]
}

# absolute PATHS: fairseq-hydra-train may work in another folder; several paths are joined by ":".
absolute() {
  local part parts=() joined
  check_path "$1"
  IFS=: read -ra parts <<< "$1"
  for part in "${parts[@]}"; do
    [[ $part == /* ]] || part=$CALLER/$part
    [ -e "$part" ] || fail "$part does not exist: prepare it first, or correct the name"
    joined=${joined:+$joined:}$part
  done
  echo "$joined"
}

# tell_other_text FOLDER PAGE "FILE LINES WHOSE"...: the figures of PAGE are for texts of so many lines; say so of the first
# file of FOLDER that has others.
tell_other_text() {
  local folder=$1 page=$2 known file lines whose found
  for known in "${@:3}"; do
    read -r file lines whose <<< "$known"
    found=$(grep -c "" "$folder/$file") || true
    [ "$found" = "$lines" ] || { echo "notice: $folder/$file has $found lines and $whose $lines: no figure of $page holds for it" && return; }
  done
}

# run_command "COMMANDS" COMMAND ARGUMENTS...: call the function COMMAND, if it is one of COMMANDS; otherwise show what
# stands at the head of the script.
run_command() {
  local commands=$1 command=${2:-}
  shift $(($# < 2 ? $# : 2))
  if [[ $command =~ ^[a-z_]+$ && " $commands " == *" $command "* ]]; then
    "$command" "$@"
  else
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "scripts/$(basename "$0")"
    exit 2
  fi
}

# json_value FILE KEY: the first value of that name, without its quotes.
json_value() {
  grep -oE "\"$2\": (\"[^\"]*\"|[0-9.]+)" "$1" | sed -n '1s/^[^:]*: "\{0,1\}\([^"]*\)"\{0,1\}$/\1/p'
}

# OWN_ENVIRONMENTS=1 is for a script that makes them itself.
USER_DIR=
[ -n "${OWN_ENVIRONMENTS:-}" ] || USER_DIR=$(luna-fairseq user-dir) || fail "luna-fairseq is not on the PATH: see docs/install.md"
check_path "$USER_DIR"

# check_config CONFIG_DIR NAME
check_config() {
  [ -f "$1/$2.yaml" ] || fail "there is no $1/$2.yaml: choose one of $(cd "$1" && ls ./*.yaml | sed 's/\.yaml//; s/^\.\///' | tr '\n' ' ')"
}

# For SMOKE_OPTIONS: the sizes of a model for a smoke run.
TINY_ENCODER=(++model.encoder_layers=1 ++model.encoder_embed_dim=32 ++model.encoder_ffn_embed_dim=32
  ++model.encoder_attention_heads=2)
TINY_DECODER=(++model.decoder_layers=1 ++model.decoder_embed_dim=32 ++model.decoder_ffn_embed_dim=32
  ++model.decoder_attention_heads=2)

# check_trained FOLDER: with a world size and no GPU fairseq may start no process, and end well.
check_trained() {
  [ -n "$(find "$1/checkpoints" -maxdepth 1 -name '*.pt' -print -quit 2> /dev/null)" ] || fail "nothing was trained: see $1/train.log"
}

updates() { sed -nuE '/valid on|train_inner/{s/^(.{160}).*/\1/;p}'; }

# train_config CONFIG_DIR NAME FOLDER OPTIONS...: train until it is done; the log grows over restarts. SMOKE_OPTIONS
# make a smoke run small.
train_config() {
  local config_dir=$1 name=$2 folder=$3 smoke=() device=() changed
  shift 3
  own "$OUT" "${MADE[@]}"
  own "$folder" options
  # Results of other data or options must not be taken for those of this run. Quotes came later than the first runs.
  if [ -f "$folder/options" ] && ! cmp -s <(printf '%s\n' "$@" | tr -d "'") <(tr -d "'" < "$folder/options"); then
    fail "$folder holds a run with other data or options ($(tr '\n' ' ' < "$folder/options")): repeat those, or set TAG to name this one"
  fi
  [ -f "$folder/options" ] || printf '%s\n' "$@" > "$folder/options"
  [ -z "$SMOKE" ] || touch "$folder/.smoke"
  changed=$(find "$config_dir" -name '*.yaml' -newer "$folder/options" | head -n 1)
  [ -z "$changed" ] || echo "$changed is newer than $folder: if it changes this run, remove that folder, or set TAG"
  if [ -f "$folder/.trained" ]; then echo "already trained: $folder"; return; fi
  hold "$folder"
  [ -z "$SMOKE" ] || smoke=("${SMOKE_OPTIONS[@]}")
  has_gpu || device=(common.cpu=true ++common.fp16=false ++distributed_training.distributed_world_size=1
    dataset.num_workers=0 dataset.data_buffer_size=0)
  hydra "common.user_dir=$USER_DIR" "checkpoint.save_dir=$folder/checkpoints" "hydra.run.dir=$folder/hydra"
  echo "training $name; log: $folder/train.log"
  # Loaded first, the plugin lets it wait for the processes of several GPUs when a signal comes.
  shown "$folder/train.log" updates luna-fairseq run fairseq-hydra-train --config-dir "$config_dir" --config-name "$name" \
    "${HYDRA[@]}" "${device[@]}" "$@" "${smoke[@]}" \
    || fail_with $? "training failed: $(grep -v -e HYDRA_FULL_ERROR -e '^[[:space:]]*$' "$folder/train.log" | tail -n 1) (log: $folder/train.log)"
  check_trained "$folder"
  touch "$folder/.trained"
  release
}

# The folder of a run.
run_of() { echo "$OUT/$1${TAG:+-$TAG}"; }

# train_configs CONFIG_DIR DATA NAME...: configs of CONFIG_DIR, each in the folder that run_of prints; OPTIONS is a list of
# words.
train_configs() {
  local config_dir=$1 data=$2 name
  shift 2
  for name in "$@"; do
    check_config "$config_dir" "$name"
    hydra "task.data=$data"
    # shellcheck disable=SC2086
    train_config "$config_dir" "$name" "$(run_of "$name")" "${HYDRA[@]}" ${OPTIONS:-}
  done
}

# evaluate FOLDER DATA SUBSET KEY=VALUE... -- OPTIONS...: accuracy of the best checkpoint in FOLDER by fairseq-validate
# with OPTIONS; FOLDER/result.json keeps it beside the keys, and is printed.
evaluate() {
  local folder=$1 data=$2 subset=$3 keys=() cpu=() accuracy pair
  shift 3
  while [ "$1" != -- ]; do
    pair=${1//\\/\\\\}  # in JSON a backslash stands before a backslash and before a quote
    pair=${pair//\"/\\\"}
    keys+=("${pair//$'\t'/\\t}")
    shift
  done
  if [ ! -f "$folder/result.json" ]; then
    hold "$folder"
    has_gpu || cpu=(--cpu)
    logged "$folder/validate.log" fairseq-validate "$data" --user-dir "$USER_DIR" \
      --path "$folder/checkpoints/checkpoint_best.pt" "${cpu[@]}" \
      --distributed-world-size 1 --valid-subset "$subset" --batch-size 16 --required-batch-size-multiple 1 \
      --num-workers 0 --data-buffer-size 0 --log-format simple "${@:2}" \
      || fail_with $? "evaluation failed: see $folder/validate.log"
    accuracy=$(sed -nE "s/.*valid on '[A-Za-z0-9_]+' subset \|.* accuracy ([0-9.]+).*/\1/p" "$folder/validate.log" | tail -n 1)
    [ -n "$accuracy" ] || fail "evaluation failed: no accuracy in $folder/validate.log"
    [[ $accuracy == *.* ]] || accuracy+=.0
    {
      printf '{'
      for pair in "${keys[@]}"; do printf '"%s": "%s", ' "${pair%%=*}" "${pair#*=}"; done
      printf '"accuracy": %s}\n' "$accuracy"
    } > "$folder/result.tmp"
    mv "$folder/result.tmp" "$folder/result.json"
    release
  fi
  cat "$folder/result.json"
}
