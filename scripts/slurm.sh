#!/usr/bin/env bash
# Train a config of configs/ on a Slurm cluster: submits a job that runs scripts/torchrun.sh on every node.
#
#   CONFIG=masked_lm/pretrain_luna_tied_128_160gb DATA=/data/shard0:/data/shard1 OUT=/runs/luna NODES=4 GPUS=8 \
#     scripts/slurm.sh [OPTIONS...]
#
# OPTIONS are those of fairseq-hydra-train; CONFIG, DATA and OUT are explained in scripts/torchrun.sh. WARNING seconds
# before the end of TIME the training ends after the update at hand, with a checkpoint; the job is queued again and goes
# on from there. So it does when another job takes its place, if the cluster sends that signal then, or gives SIGTERM
# time (PreemptParameters=send_user_signal, GraceTime). The same command goes on from the last checkpoint, too.
# Everything that is printed goes to slurm-JOB.out where you are.
# Submit it from an environment that has the plugin, in a file system that the nodes see: PATH=.venv/bin:$PATH ...
set -euo pipefail
CALLER=$PWD
here=$(dirname "${BASH_SOURCE[0]}")
[ ! -f "$here/torchrun.sh" ] || cd "$here/.."  # a job runs a copy of this file, and begins in the right folder

# Set these here or in the environment.
export CONFIG=${CONFIG:-translation/translation}
export DATA=${DATA:-} OUT=${OUT:-}
NODES=${NODES:-1}
GPUS=${GPUS:-8}     # on each node, as many processes
CPUS=${CPUS:-4}     # cores of each process
TIME=${TIME:-24:00:00}
WARNING=${WARNING:-120}  # enough for an update, a validation and a save
SBATCH=${SBATCH:-}  # more options of sbatch, such as "--partition gpu --account ours"

if [ -z "${SUBMITTED:-}" ]; then
  # What is wrong is said now, not after hours in the queue.
  DATA=$(
    DEFAULT_OUT=outputs
    . scripts/experiment.sh
    check_config "configs/$(dirname "$CONFIG")" "$(basename "$CONFIG")"
    [ -n "$DATA" ] || fail "DATA is not set: name the data folder, or shards joined by \":\""
    absolute "$DATA"
  )
  OUT=${OUT:-outputs/${CONFIG##*/}}  # as in torchrun.sh, where the job does not know the caller's folder
  [[ $OUT == /* ]] || OUT=$CALLER/$OUT
  # SBATCH is a list of words.
  # shellcheck disable=SC2086
  SUBMITTED=1 exec sbatch --job-name "${CONFIG##*/}" --nodes "$NODES" --ntasks-per-node 1 --gpus-per-node "$GPUS" \
    --cpus-per-task $((CPUS * GPUS)) --time "$TIME" --signal "B:USR1@$WARNING" --requeue --open-mode append \
    --output "$CALLER/slurm-%j.out" --chdir "$PWD" --export ALL $SBATCH "$PWD/scripts/slurm.sh" "$@"
fi

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export HEAD=$host:$((20000 + SLURM_JOB_ID % 20000)) NODES=$SLURM_JOB_NUM_NODES PROCESSES=$GPUS THREADS=${THREADS:-$CPUS}
srun --ntasks-per-node 1 --cpus-per-task $((CPUS * GPUS)) --kill-on-bad-exit=1 scripts/torchrun.sh "$@" &
job=$!
# srun passes this signal on, and ends everything at once at others.
again=
trap 'again=1; kill -s USR1 "$job" 2> /dev/null' USR1
trap 'kill -s USR1 "$job" 2> /dev/null' HUP INT TERM
wait "$job" && code=0 || code=$?
while kill -0 "$job" 2> /dev/null; do  # a signal ends "wait", not yet the job
  wait "$job" && code=0 || code=$?
done
if [ "$code" != 0 ] && [ -n "$again" ]; then
  echo "slurm.sh: job $SLURM_JOB_ID is queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
