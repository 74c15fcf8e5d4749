#!/usr/bin/env bash
# A Ray cluster inside a Slurm job, and one job of recon_ray on it:
#
#   sbatch --nodes=4 configs/cluster/slurm.sh jobs/pretrain.py configs/pretrain/base.yaml \
#       run.name=base run.storage=/shared/runs data.path=/shared/shapenet55 cluster.workers=4 \
#       runtime.device=cuda
#
# The repository, its environment (.venv, or RECON_PYTHON=<python>), run.storage and data.path lie
# where all nodes see them. Before its time is up the job commits and goes back into the queue; with
# the same run.name it continues there. Who gives it longer than 180 s (sbatch --signal=B:USR1@600)
# may let it commit longer (RECON_COMMIT_SECONDS, 150).
#SBATCH --job-name=recon
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch [options] configs/cluster/slurm.sh jobs/<job>.py [CONFIG.yaml ...] [key=value ...]" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:?this script is for sbatch}"
python=${RECON_PYTHON:-$PWD/.venv/bin/python}
ray() { "$python" -m ray.scripts.scripts "$@"; }

# One token for this cluster only, in a file that nobody else can read; never on a command line.
token_file=$PWD/.ray-token-$SLURM_JOB_ID
(umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32))' >"$token_file")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token_file RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_address=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))
resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_PER_TASK:-0}")
started=()
finish() {
    kill "${started[@]}" 2>/dev/null || true
    rm -f "$token_file"
}
trap finish EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" "$python" -m ray.scripts.scripts start \
    --head --block --node-ip-address="$head_address" --port="$port" --dashboard-host=127.0.0.1 \
    "${resources[@]}" &
started+=($!)
for node in "${nodes[@]:1}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$python" -m ray.scripts.scripts start \
        --block --address="$head_address:$port" "${resources[@]}" &
    started+=($!)
done
for _ in $(seq 60); do
    alive=$(ray list nodes --address="$head_address:$port" --format=json 2>/dev/null |
        "$python" -c 'import json, sys; print(sum(n["state"] == "ALIVE" for n in json.load(sys.stdin)))' ||
        echo 0)
    [[ $alive -ge ${#nodes[@]} ]] && break
    sleep 5
done

# 180 s before the end Slurm sends USR1: the run commits and ends, and the job is queued again; also
# where the run does not end, for then the time would be up.
"$python" "$@" cluster.address="$head_address:$port" &
driver=$!
requeue() {
    kill -TERM "$driver" 2>/dev/null || true
    for _ in $(seq "${RECON_COMMIT_SECONDS:-150}"); do
        kill -0 "$driver" 2>/dev/null || break
        sleep 1
    done
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1
wait "$driver"
