#!/usr/bin/env bash
# Test on several GPUs, or with several CPU processes where there are none, by torchrun.
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [further arguments of tools/test.py]
# Several machines: the same command on each of them with NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [argument ...]" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
tools=$(dirname "${BASH_SOURCE[0]}")
MAX_RESTARTS=0 exec "${PYTHON:-python}" -m vpt_dense.launch "$gpus" "$tools/test.py" \
    "$config" "$checkpoint" "$@"
