#!/usr/bin/env bash
# One training job with a Ray cluster of its own on the nodes of a Slurm allocation. Call sbatch in the repository's folder with
# the environment active, both on a file system that all nodes see:
#   sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 infra/slurm.sh \
#       python pipelines/full.py --recipe my.yaml --root /nfs/scalablevit
#SBATCH --job-name=scalablevit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --open-mode=append
# a lost node does not end the job: with cluster.min_workers training continues with fewer workers
#SBATCH --no-kill
# SIGTERM for this script when 150 s are left: 90 to save, the rest to end Ray
#SBATCH --signal=B:TERM@150
set -euo pipefail

STOP_S=90   # for a stopped job to save, as infra/head.py gives it
DRAIN_S=25  # for workers to save when Slurm ends the steps themselves (scancel); after 30 s it kills them
START_S=300 # for all nodes to be there
END_S=40    # for Ray's processes to end

fail() {
    echo "error: $*" >&2
    exit 1
}

if [ $# -eq 0 ]; then
    echo "error: no command; write: sbatch infra/slurm.sh python pipelines/full.py --recipe my.yaml --root <shared folder>" >&2
    exit 2
fi
[ -n "${SLURM_JOB_ID:-}" ] || fail "this is no Slurm job; write: sbatch infra/slurm.sh $*"
cd "$SLURM_SUBMIT_DIR" # what runs is Slurm's copy of this script, elsewhere
[ -f infra/runtime_env.yaml ] || fail "$PWD is not the platform's repository; call sbatch there"
command -v ray > /dev/null || fail "ray is not in PATH; source .venv/bin/activate, then call sbatch"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ ${#nodes[@]} -gt 0 ] || fail "Slurm names no nodes (SLURM_JOB_NODELIST=$SLURM_JOB_NODELIST)"
cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
job="slurm-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
# folder and ports are the job's own, since others may be on the same nodes; a socket's path has at most 107 bytes
temp="/tmp/sv-${job#slurm-}" # another one when Slurm queues the job again: a lost node leaves its own
port=$((20000 + SLURM_JOB_ID % 1000 * 10))

unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_TOKEN_PATH
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_JOB_STOP_WAIT_TIME_S=$STOP_S RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=$DRAIN_S
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONUNBUFFERED=1 # training sets its own number of threads

pids=() # of all that runs in the background
submit= # of `ray job submit`
stopping=
prepared=

on() { # command...; on the nodes of `where`, for a subshell only: its process becomes srun's
    exec srun --nodes=${#where[@]} --ntasks=${#where[@]} --ntasks-per-node=1 --nodelist="$(IFS=,; echo "${where[*]}")" \
        --cpus-per-task="$cpus" --cpu-bind=none --overlap --kill-on-bad-exit=0 --no-kill "$@"
}

living() { # process ids...; whether one of them lives
    local pid
    for pid in "$@"; do
        if kill -0 "$pid" 2> /dev/null; then return 0; fi
    done
    return 1
}

end() {
    local code=$? pid deadline=$((SECONDS + END_S))
    trap - EXIT
    trap '' TERM INT
    # srun hands the signal on, and Ray's own process on each node ends its children
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2> /dev/null || true; done
    while living "${pids[@]}" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.5; done
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2> /dev/null || true; done
    where=("${nodes[@]}")
    if [ -n "$prepared" ]; then (on rm -rf "$temp") || true; fi
    exit "$code"
}

stop() {
    local deadline=$((SECONDS + STOP_S))
    if [ -n "$stopping" ]; then return; fi
    stopping=yes
    [ -n "$submit" ] || exit 130
    echo "stopping job $job: it saves and ends (at most $STOP_S s)"
    # again while it is not there yet
    until timeout $((STOP_S + 10)) ray job stop --address "$dashboard" "$job"; do
        if ! living "$submit" || [ "$SECONDS" -ge "$deadline" ]; then return; fi
        sleep 1
    done
}

trap end EXIT
trap stop TERM INT

where=("${nodes[@]}")
(on mkdir -m 700 "$temp")
prepared=yes
where=("${nodes[0]}")
address=127.0.0.1
if [ ${#nodes[@]} -gt 1 ]; then
    # by which the head reaches another node: its own name may mean 127.0.1.1 to it
    address=$(on python -c 'import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((sys.argv[1], 9))
    print(probe.getsockname()[0])' "${nodes[-1]}")
else
    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 # else Ray does not keep to 127.0.0.1: see infra/head.py
fi
dashboard="http://$address:$((port + 1))"
export NO_PROXY="${NO_PROXY:+$NO_PROXY,}$address" no_proxy="${no_proxy:+$no_proxy,}$address"

wait_for() { # what did not happen, command...; until it succeeds, Ray has ended on a node, or time is up
    local what=$1 pid
    shift
    until "$@" > /dev/null 2>&1; do
        for pid in "${pids[@]}"; do
            living "$pid" || fail "Ray ended while it started: see the lines above"
        done
        [ $SECONDS -lt $START_S ] || fail "$what within $START_S s"
        sleep 1
    done
}

all_there() {
    local found
    found=$(ray list nodes --address "$dashboard" --filter state=ALIVE --limit ${#nodes[@]} --format json | grep -o '"node_id"' | wc -l)
    [ "$found" -eq ${#nodes[@]} ]
}

options=(--block --disable-usage-stats --num-cpus "$cpus" --temp-dir "$temp" --min-worker-port 0 --max-worker-port 0
    --dashboard-agent-listen-port $((port + 2)) --metrics-export-port $((port + 3)))
on ray start --head --node-ip-address "$address" --port "$port" --dashboard-host "$address" \
    --dashboard-port $((port + 1)) --ray-client-server-port $((port + 4)) "${options[@]}" &
pids+=($!)
wait_for "the head on ${nodes[0]} did not answer" ray health-check --address "$address:$port"
if [ ${#nodes[@]} -gt 1 ]; then
    where=("${nodes[@]:1}")
    on ray start --address "$address:$port" "${options[@]}" &
    pids+=($!)
fi
wait_for "not all of ${nodes[*]} joined" all_there

ray job submit --address "$dashboard" --submission-id "$job" --runtime-env infra/runtime_env.yaml -- "$@" &
submit=$!
pids+=("$submit")
while true; do
    code=0
    wait "$submit" || code=$?
    living "$submit" || break # a signal ends `wait`, and not the job
done
[ -z "$stopping" ] || code=130
exit $code
