#!/usr/bin/env bash
# Train on several GPUs, or with several CPU processes where there are none, by torchrun.
#   [MAX_RESTARTS=0] bash tools/dist_train.sh CONFIG GPUS [further arguments of tools/train.py]
# MAX_RESTARTS: how often the processes are started again, from the run's last checkpoint, when one
# has died. Several machines: the same command on each of them with NNODES, NODE_RANK, MASTER_ADDR
# and PORT, and with a RUN_ID of your choice beside MAX_RESTARTS. Other options of torchrun: PET_...
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash tools/dist_train.sh CONFIG GPUS [argument ...]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
tools=$(dirname "${BASH_SOURCE[0]}")
exec "${PYTHON:-python}" -m vpt_dense.launch "$gpus" "$tools/train.py" "$config" "$@"
