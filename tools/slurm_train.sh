#!/usr/bin/env bash
# Train on a Slurm cluster.
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [MAX_RESTARTS=0] [SRUN_ARGS=...] \
#       bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [further arguments of tools/train.py]
# CPUS_PER_TASK is for each GPU. In a batch job a run that is preempted saves, the job is put back
# into the queue, and goes on where it was; ask for the signal some time before the limit:
#   sbatch --requeue --open-mode=append --signal=USR1@120 [...] --wrap \
#       'bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG'
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [argument ...]" >&2
    exit 2
fi
partition=$1 job_name=$2
shift 2
tools=$(dirname "${BASH_SOURCE[0]}")
. "$tools/slurm_common.sh"
resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then  # Slurm counts how often the job was put back
    resume=(--resume if-any)
fi
# In the background: bash answers a signal only when the command in front has ended.
"${launch[@]}" "$tools/train.py" "$@" ${resume[@]+"${resume[@]}"} &
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
