#!/usr/bin/env bash
# Train on a Slurm cluster.
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#       bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [further arguments of tools/train.py]
# In a batch job a run that is preempted saves, the job is put back into the queue, and goes on
# where it was; ask for the signal some time before the limit:
#   sbatch --requeue --open-mode=append --signal=USR1@120 [...] --wrap \
#       'bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG'
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [argument ...]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
tools=$(dirname "${BASH_SOURCE[0]}")
resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then  # Slurm counts how often the job was put back
    resume=(--resume if-any)
fi
# In the background: bash answers a signal only when the command in front has ended.
# shellcheck disable=SC2086  # SRUN_ARGS is several words
srun -p "$partition" --job-name="$job_name" \
    --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" --launcher slurm "$@" \
    ${resume[@]+"${resume[@]}"} &
srun=$!
for signal in TERM USR1 INT; do
    # srun hands it on to the processes of the run. Started in the background it ignores INT.
    # shellcheck disable=SC2064  # the values of now
    trap "again=1; kill -s ${signal/INT/TERM} $srun 2>/dev/null || true" "$signal"
done
again=1
while [ -n "$again" ]; do  # a signal ends the wait, not srun
    again='' code=0
    wait "$srun" || code=$?
done
if [ "$code" -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "preempted: job $SLURM_JOB_ID goes back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID" ||
        echo "it cannot: run the same command again with --resume" >&2
fi
exit "$code"
