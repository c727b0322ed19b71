# Read by slurm_train.sh and slurm_test.sh: $launch, the command that starts a tool on all GPUs.
# One task a node, which starts a process per GPU (vpt_dense/launch.py); they meet at the first one.
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
if ((gpus % per_node)); then
    echo "error: GPUS=$gpus is not a multiple of GPUS_PER_NODE=$per_node" >&2
    exit 2
fi
export NNODES=$((gpus / per_node)) RUN_ID=${RUN_ID:-${SLURM_JOB_ID:-$$}-$(date +%s)}
# shellcheck disable=SC2016  # the variables of the task
meet='export NODE_RANK=$SLURM_NODEID PORT=${PORT:-$((10000 + SLURM_JOB_ID % 20000))}
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1) || exit
    export MASTER_ADDR; exec "$@"'
# When a node has ended the others may take a minute: srun's exit code shall be theirs, not that
# of being killed.
# shellcheck disable=SC2034,SC2206  # used by who reads this; SRUN_ARGS is several words
launch=(srun -p "$partition" --job-name="$job_name" --gres="gpu:$per_node" --nodes="$NNODES"
    --ntasks="$NNODES" --ntasks-per-node=1 --cpus-per-task="$((${CPUS_PER_TASK:-5} * per_node))"
    --kill-on-bad-exit=0 --wait=60 ${SRUN_ARGS:-}
    bash -c "$meet" meet "${PYTHON:-python}" -m vpt_dense.launch "$per_node")
