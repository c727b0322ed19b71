#!/usr/bin/env bash
# Train on several GPUs, or with several CPU processes where there are none.
#   bash tools/dist_train.sh CONFIG GPUS [further arguments of tools/train.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT as for torchrun.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash tools/dist_train.sh CONFIG GPUS [argument ...]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
tools=$(dirname "${BASH_SOURCE[0]}")
exec "${PYTHON:-python}" -m vpt_dense.engine.launch "$gpus" "$tools/train.py" "$config" "$@"
