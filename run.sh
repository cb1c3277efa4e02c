#!/usr/bin/env bash
# Runs `times` x `maps` trainings, at most `threads` at once, GPUs in turn. Arguments as in PyMARL2's run.sh.
set -uo pipefail
set -m # every job gets its own process group: Ctrl-C reaches this script only, which then tells each job once

usage() {
    cat <<'END'
Usage: bash run.sh CONFIG ENV MAPS [ARGS] [THREADS] [GPUS] [TIMES]

  CONFIG   algorithm (src/config/algs) or the path of a yaml file
  ENV      environment (src/config/envs) or the path of a yaml file
  MAPS     maps, e.g. 3m,6h_vs_8z; for gymma the PettingZoo environments; "" if the environment has none.
           An item key=value sets that key instead, e.g. env_args.penalty=0.3,env_args.penalty=1.0
  ARGS     settings for all runs, e.g. epsilon_anneal_time=500000,td_lambda=0.3      (default: none)
  THREADS  how many runs at once                                                     (default: 1)
  GPUS     GPUs taken in turn, e.g. 0,1; -1 or cpu: none                             (default: 0)
  TIMES    how often each map is run, each time with another seed                    (default: 5)

Every run gets a seed of its own: a random one, or with seed=S in ARGS the seeds S, S+1, ..., S+TIMES-1.
With seed=S and resume=auto the same command continues what was interrupted.
Ctrl-C (or SIGTERM, SIGHUP, SIGUSR1) ends the runs of this command cleanly, with a checkpoint each; Ctrl-C once
more aborts them.
Exit code: 0 if all runs succeeded, 1 if one failed, 130 after Ctrl-C.
LAUNCHER=slurm submits the runs to Slurm instead (docs/guide/sweeps.md): THREADS is then how many jobs at once,
GPUS only whether a run has one, HOURS the time limit of a job.
Environment variables: PYTHON (default: .venv/bin/python, else python3), LOG_DIR (default: results/logs),
OMP_NUM_THREADS (CPU threads of a run; default with THREADS > 1: processors / THREADS).

Example: bash run.sh qmix sc2 6h_vs_8z epsilon_anneal_time=500000,td_lambda=0.3 2 0 5
END
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
esac
if (($# < 3 || $# > 7)); then
    echo "error: run.sh takes 3 to 7 arguments, got $#; bash run.sh -h explains them" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2

command_line="$*"
config=$1
env=$2
threads=${5:-1}
times=${7:-5}
for number in "$threads" "$times"; do
    if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
        echo "error: THREADS and TIMES must be numbers of at least 1, got '$number'" >&2
        exit 2
    fi
done
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
logs=${LOG_DIR:-results/logs}
cores=${OMP_NUM_THREADS:-1} # of a job on Slurm
# Runs side by side share the processors: more threads than processors make torch many times slower.
if [[ -z ${OMP_NUM_THREADS:-} ]] && ((threads > 1)); then
    OMP_NUM_THREADS=$(($(nproc) / threads))
    ((OMP_NUM_THREADS > 0)) || OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
fi

# Splits $1 at its commas into the array `parts`, but not at commas within brackets: lists=[1,2],x=3.
split() {
    local text=$1 depth=0 part="" char i
    parts=()
    for ((i = 0; i < ${#text}; i++)); do
        char=${text:i:1}
        case $char in
        '[' | '{' | '(') ((depth += 1)) ;;
        ']' | '}' | ')') ((depth -= 1)) ;;
        esac
        if [[ $char == , && $depth -eq 0 ]]; then
            [[ -n $part ]] && parts+=("$part")
            part=""
        else
            part+=$char
        fi
    done
    [[ -n $part ]] && parts+=("$part")
}

split "$3"
maps=("${parts[@]}")
((${#maps[@]})) || maps=("")
split "${6:-0}"
gpus=("${parts[@]}")
if ((${#gpus[@]} == 0)); then
    echo "error: GPUS must name a GPU, or be cpu" >&2
    exit 2
fi
split "${4:-}"
settings=()
first_seed=""
for setting in "${parts[@]}"; do
    if [[ $setting == seed=* ]]; then
        first_seed=${setting#seed=}
        if ! [[ $first_seed =~ ^[0-9]+$ ]]; then
            echo "error: seed must be a number, got '$first_seed'" >&2
            exit 2
        fi
    else
        settings+=("$setting")
    fi
done

# The setting that chooses map $1: PettingZoo environments are called `key`, all others have a map_name.
map_setting() {
    local file=$env
    [[ $env == */* || $env == *.yaml ]] || file=src/config/envs/$env.yaml
    if [[ $1 == *=* ]]; then
        echo "$1"
    elif [[ -f $file ]] && grep -qE '^ +key:' "$file"; then
        echo "env_args.key=$1"
    else
        echo "env_args.map_name=$1"
    fi
}

# One training, run as a job. $1: label, $2: GPU, $3: log file, then the command line of main.py.
train() {
    local label=$1 gpu=$2 log=$3 child="" status
    shift 3
    trap '[[ -n $child ]] && kill -TERM "$child" 2>/dev/null' TERM HUP USR1
    trap 'abort "$child"' INT
    SECONDS=0
    CUDA_VISIBLE_DEVICES=$gpu "$PYTHON" src/main.py "$@" >"$log" 2>&1 </dev/null &
    child=$!
    while true; do # a signal ends `wait`, not the training
        wait "$child"
        status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    if ((status == 0)); then
        echo "$label: done after $SECONDS s"
    else
        echo "$label: exit code $status after $SECONDS s: $(tail -n 1 "$log")" >&2
        exit 1
    fi
}

# A training ends at once at its second Ctrl-C.
abort() {
    [[ -n $1 ]] || return
    kill -INT "$1" 2>/dev/null
    sleep 0.3
    kill -INT "$1" 2>/dev/null
}

stopping="" signalled=""
# $1: the signal that came. The first one ends the runs with a checkpoint, a second Ctrl-C aborts them.
stop() {
    local pids signum=TERM
    [[ -n $stopping && $1 == INT ]] && signum=INT
    mapfile -t pids <<<"$(jobs -pr)"
    if [[ $signum == INT ]]; then
        echo "aborting $active run(s)" >&2
    elif [[ -z $stopping ]]; then
        echo "stopping $active run(s); they write a checkpoint first" >&2
    fi
    stopping=yes signalled=yes
    [[ -n ${pids[0]} ]] && kill "-$signum" "${pids[@]}" 2>/dev/null
}
trap 'stop INT' INT
trap 'stop TERM' TERM HUP USR1

# --- LAUNCHER=slurm: the same runs as the yaml file of a sweep ---

# $1 as a string of yaml.
quoted() {
    printf "'%s'" "${1//\'/\'\'}"
}

# "key: value, ..." of the settings key=value in the arguments.
as_yaml() {
    local setting comma=""
    for setting in "$@"; do
        printf '%s%s: %s' "$comma" "$(quoted "${setting%%=*}")" "$(quoted "${setting#*=}")"
        comma=", "
    done
}

# The file; without seed=S its seeds are random ones, so that it has a name of its own.
write_sweep() {
    local seeds=() repeat map chosen
    for ((repeat = 0; repeat < times; repeat++)); do
        if [[ -n $first_seed ]]; then
            seeds+=($((first_seed + repeat)))
        else
            seeds+=($(($(od -An -N4 -tu4 /dev/urandom) & 0x7fffffff)))
        fi
    done
    printf '# bash run.sh %s\n' "$command_line"
    printf 'methods: {%s: %s}\n' "$(quoted "$config")" "$(quoted "$config")"
    printf 'tasks:\n'
    for map in "${maps[@]}"; do
        chosen=()
        [[ -n $map ]] && chosen+=("$(map_setting "$map")")
        printf '  %s: {environment: %s, settings: {%s}}\n' "$(quoted "${map:-$env}")" \
            "$(quoted "$env")" "$(as_yaml ${chosen[@]+"${chosen[@]}"})"
    done
    printf 'seeds: [%s]\n' "$(IFS=,; echo "${seeds[*]}")"
    printf 'settings: {%s}\n' "$(as_yaml ${settings[@]+"${settings[@]}"})"
    printf 'resources: {cores: %s, gpus: %s%s}\n' "$cores" "$n_gpus" \
        "${HOURS:+, hours: $HOURS}"
    printf 'metrics: {test_return_mean: Test return}\n'
}

case ${LAUNCHER:-local} in
local) ;;
slurm)
    n_gpus=1
    if [[ ${gpus[0]} == cpu || ${gpus[0]} == -1 ]]; then
        n_gpus=0
        settings+=("use_cuda=False")
    fi
    name=$(basename "$config" .yaml)_$(basename "$env" .yaml)_$(cksum <<<"$command_line" | cut -d" " -f1)
    [[ -n $first_seed ]] || name+=_$(date +%Y%m%d-%H%M%S)
    mkdir -p results/sweeps || exit 2
    file=results/sweeps/$name.yaml
    write_sweep >"$file" || exit 2
    echo "sweep: $file"
    exec "$PYTHON" src/main.py sweep "$file" --launcher slurm --jobs "$threads"
    ;;
*)
    echo "error: LAUNCHER must be local or slurm, got '$LAUNCHER'" >&2
    exit 2
    ;;
esac

active=0 failed=""
# Waits until fewer than $1 jobs run.
wait_below() {
    local status
    while ((active >= $1)); do
        signalled=""
        wait -n
        status=$?
        if [[ -n $signalled ]]; then
            continue # `wait` was interrupted, no job ended
        fi
        if ((status == 127)); then # no job is left
            active=0
            return
        fi
        ((active -= 1))
        ((status == 0)) || failed=yes
    done
}

mkdir -p "$logs" || exit 2
total=$((times * ${#maps[@]}))
count=0
for ((repeat = 0; repeat < times; repeat++)); do
    for map in "${maps[@]}"; do
        wait_below "$threads"
        [[ -n $stopping ]] && break 2
        seed=$(($(od -An -N4 -tu4 /dev/urandom) & 0x7fffffff))
        [[ -n $first_seed ]] && seed=$((first_seed + repeat))
        gpu=${gpus[count % ${#gpus[@]}]}
        chosen=("seed=$seed")
        [[ -n $map ]] && chosen+=("$(map_setting "$map")")
        if [[ $gpu == cpu || $gpu == -1 ]]; then
            gpu=""
            chosen+=("use_cuda=False")
        fi
        name=$(basename "$config" .yaml)_$(basename "$env" .yaml)${map:+_$map}_seed$seed
        log=$logs/${name//[^[:alnum:]._=-]/-}.log
        ((count += 1))
        label="[$count/$total] $config $env${map:+ $map} seed $seed gpu ${gpu:-none}"
        echo "$label: log $log"
        train "$label" "$gpu" "$log" "--config=$config" "--env-config=$env" with "${chosen[@]}" "${settings[@]}" &
        ((active += 1))
        [[ -n $stopping ]] && kill -TERM $! # Ctrl-C came while it was being started
    done
done
wait_below 1
[[ -n $stopping ]] && exit 130
[[ -z $failed ]] || exit 1
