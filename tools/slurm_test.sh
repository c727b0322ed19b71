#!/usr/bin/env bash
# Test on a Slurm cluster.
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#       bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]
# CPUS_PER_TASK is for each GPU.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [argument ...]" >&2
    exit 2
fi
partition=$1 job_name=$2
shift 2
tools=$(dirname "${BASH_SOURCE[0]}")
. "$tools/slurm_common.sh"
MAX_RESTARTS=0 exec "${launch[@]}" "$tools/test.py" "$@"
