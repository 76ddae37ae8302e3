#!/usr/bin/env bash
# Train a config of configs/ with several processes: the GPUs of one machine or of many, or CPU cores.
#
#   CONFIG=masked_lm/pretrain_small DATA=corpus/data-bin/shard0:corpus/data-bin/shard1 scripts/torchrun.sh [OPTIONS...]
#
# OPTIONS are those of fairseq-hydra-train, such as optimization.max_update=1000. An update takes update_freq batches of
# every process: with another number of them than in the config, keep the product by optimization.update_freq=[N].
# On many machines give the same command on each, with NODES and HEAD; the same folders must be there, OUT shared.
# It can be interrupted: at SIGTERM, SIGINT (Ctrl-C), SIGHUP or SIGUSR1 the training ends after the update at hand, with
# a checkpoint, at the second signal at once, and the same command goes on. A run that has begun takes other options, or
# another number of processes, only with CHANGED=1: in that epoch some sentences may then come twice, or not at all.
# scripts/slurm.sh is for a Slurm cluster.
# Run it in an environment that has the plugin: PATH=.venv/bin:$PATH scripts/torchrun.sh ...
set -euo pipefail
CALLER=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Set these here or in the environment.
CONFIG=${CONFIG:-translation/translation}  # configs/CONFIG.yaml
DATA=${DATA:-}                             # a folder of prepared data, or shards joined by ":"
DEFAULT_OUT=outputs/${CONFIG##*/}          # OUT: the folder for checkpoints and train.log
NODES=${NODES:-1}                          # machines
PROCESSES=${PROCESSES:-}                   # on each of them; default: as many as GPUs, or 1 with CPU=1
HEAD=${HEAD:-}                             # HOST:PORT, one of the machines and a free port, if NODES is more than 1
CPU=${CPU:-}                               # 1: train on CPU cores
THREADS=${THREADS:-1}                      # of each process
# SMOKE=1: two updates of a tiny model, in OUT/smoke

. scripts/experiment.sh
check_config "configs/$(dirname "$CONFIG")" "$(basename "$CONFIG")"
[ -n "$DATA" ] || fail "DATA is not set: name the data folder, or shards joined by \":\""
DATA=$(absolute "$DATA")
for number in "$NODES" "${PROCESSES:-1}" "$THREADS"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || fail "NODES, PROCESSES or THREADS is $number: give a number from 1 on"
done
[ "$NODES" = 1 ] || [[ $HEAD == *:* ]] || fail "NODES is $NODES: set HEAD to HOST:PORT of one of the machines"

device=()
if [ -n "$CPU" ]; then
  PROCESSES=${PROCESSES:-1}
  device=(common.cpu=true common.fp16=false distributed_training.distributed_backend=gloo dataset.num_workers=0
    dataset.data_buffer_size=0)
else
  count_gpus
  [ "$GPUS" -ge "${PROCESSES:-1}" ] || fail "this machine has $GPUS GPUs: lower PROCESSES, or set CPU=1 to train on its cores"
  PROCESSES=${PROCESSES:-$GPUS}
fi
small=()
[ -z "$SMOKE" ] || small=("${TINY_ENCODER[@]}" optimization.max_update=2 optimization.max_epoch=0 "optimization.update_freq=[1]"
  dataset.max_valid_steps=2 dataset.batch_size=2 common.log_interval=1)
[[ -z $SMOKE || $CONFIG != translation/* ]] || small+=("${TINY_DECODER[@]}")

own "$OUT" run 'checkpoints/*.pt'
mkdir -p "$OUT/logs"
RUN=$(printf '%s\n' "$CONFIG" "$DATA" "$((NODES * PROCESSES)) processes" "$@")
[ -z "$(find "$OUT/checkpoints" -name '*.pt' -print -quit 2> /dev/null)" ] || [ "$RUN" = "$(cat "$OUT/run" || true)" ] || [ -n "${CHANGED:-}" ] \
  || fail "$OUT holds another run ($(tr '\n' ' ' < "$OUT/run")): repeat that, set OUT, or set CHANGED=1 to go on otherwise"
if [ -f "$OUT/.trained" ]; then echo "already trained: $OUT"; exit; fi
rm -f "$OUT/failed"

# Each process has a log; the first one's is train.log. The signals that torchrun sends to the whole group of a process
# are for the training alone: who waits for it, and writes the log, ends after it.
STARTED=$(mktemp -d)
trap 'rm -rf "$STARTED"' EXIT
export OUT RUN STARTED
# shellcheck disable=SC2016
process='
set -euo pipefail
log=$OUT/logs/$RANK.log
if [ "$RANK" = 0 ]; then
  log=$OUT/train.log
  # Held until this process is gone, even if nobody waits for it any more.
  exec 9> "$OUT/lock"
  if command -v flock > /dev/null && ! flock -n 9; then
    echo "another job trains into this folder: wait for it, or end it" >> "$OUT/failed"
    exit 1
  fi
  echo "$RUN" > "$OUT/run"
fi
trap : HUP INT TERM USR1 USR2
(
  echo "$BASHPID" > "$STARTED/$RANK"
  exec fairseq-hydra-train "$@" distributed_training.distributed_world_size="$WORLD_SIZE" \
    distributed_training.distributed_rank="$RANK" distributed_training.device_id="$LOCAL_RANK" \
    distributed_training.distributed_init_method=env:// distributed_training.distributed_no_spawn=true 2>&1 9>&-
) | (
  trap "" HUP INT TERM USR1 USR2
  exec tee -a "$log" 9>&-
) || {
    echo "process $RANK (exit code $?): $(grep -v -e HYDRA_FULL_ERROR -e "^[[:space:]]*$" "$log" | tail -n 1)" >> "$OUT/failed"
    exit 1
  }
'
if [ "$NODES" = 1 ]; then
  meeting=(--standalone)
else
  meeting=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "${SLURM_JOB_ID:-${CONFIG##*/}}")
fi
hydra "common.user_dir=$USER_DIR" "task.data=$DATA" "checkpoint.save_dir=$OUT/checkpoints" "hydra.run.dir=$OUT/hydra"
echo "training $CONFIG in $NODES x $PROCESSES processes; log: $OUT/train.log"
job='' stopped='' when=0
# stop SIGNAL: the trainings end when they have saved. They hear of it themselves: torchrun would kill them after 30
# seconds. Twice in a moment is the same wish, come by two ways.
stop() {
  local training told=
  [ -z "$stopped" ] || ((SECONDS - when > 1)) || return 0
  stopped=$1 when=$SECONDS
  for training in "$STARTED"/*; do
    if kill -s "$1" "$(cat "$training" 2> /dev/null)" 2> /dev/null; then told=1; fi
  done
  [ -n "$told$job" ] || return 0
  [ -n "$told" ] || kill "$job" 2> /dev/null || true
}
for signal in HUP INT TERM USR1 USR2; do
  # shellcheck disable=SC2064
  trap "stop $signal" "$signal"
done
# In a process group of its own: what a terminal sends comes by this script alone.
set -m
torchrun "${meeting[@]}" --nproc-per-node "$PROCESSES" --no-python bash -c "$process" process \
  --config-dir "$PWD/configs/$(dirname "$CONFIG")" --config-name "$(basename "$CONFIG")" "${HYDRA[@]}" \
  "${device[@]}" "${small[@]}" "$@" < /dev/null &
job=$!
set +m
if [ -n "$stopped" ]; then when=-9 && stop "$stopped"; fi
wait "$job" && code=0 || code=$?
while kill -0 "$job" 2> /dev/null; do  # a signal ends "wait", not yet the job
  wait "$job" && code=0 || code=$?
done
if [ "$code" != 0 ] && [ -n "$stopped" ]; then
  echo "$(basename "$0"): interrupted by SIG$stopped: the same command goes on from the last checkpoint" >&2
  exit $((128 + $(kill -l "$stopped")))
fi
[ "$code" = 0 ] || fail "training stopped: $(head -n 1 "$OUT/failed" 2> /dev/null || echo "torchrun says why above") (log: $OUT/train.log)"
check_trained "$OUT"
touch "$OUT/.trained"
