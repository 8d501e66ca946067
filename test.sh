#!/usr/bin/env bash
# Runs the image on the sample cases as the platform does, and compares with the stored outputs and
# with the truth: a case may hold its own "settings" (arguments of the container), and beside a
# truth.mha the "least_dice" that each label must reach.
#
# A case is of the year that its input shows: of 2025, or of 2026. An image that is built for one
# year (INTERFACE) is tried on the cases of that year.
#
#   ./test.sh                       every case of test/cases with Docker
#   DOCKER=podman ./test.sh         with Podman
#   ./test.sh CASE...               these cases only
#
# As on the platform: no network, read-only root, the image's own user (not root), no capabilities,
# /tmp a volume, /input read-only, 16 GB of memory (both as the cgroup's limit and as RLIMIT_DATA,
# which turns too much memory into a MemoryError), and the seconds that the case's year gives a run.
#
# IMAGE            name of the image                          (default hmvnet)
# HMVNET_TASK      of 2025: 1, 2 or both                      (default: the image's)
# ON_ERROR         answer or refuse                           (default: the image's)
# MODEL            a bundle to mount at /opt/ml/model, as the platform does with a model upload: its
#                  outputs are held against the form of the stored ones, not their values, unless
#                  MIN_DICE is given
# MEMORY_GB        memory limit                               (default 16)
# GPU              auto, or none to leave the GPU out         (default auto)
# MIN_DICE         least Dice with the stored mask            (default 0.99)
# DOCKER_RUN_ARGS  further arguments to "$DOCKER run"
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
image=${IMAGE:-hmvnet}
memory_gb=${MEMORY_GB:-16}
read -r -a engine <<< "${DOCKER:-docker}"
read -r -a extra <<< "${DOCKER_RUN_ARGS:-}"

sandbox=(--rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges)
sandbox+=(--volume /tmp --shm-size 128m --pids-limit 512)
sandbox+=(--memory "${memory_gb}g" --memory-swap "${memory_gb}g")
sandbox+=(--ulimit "data=$((memory_gb << 30)):$((memory_gb << 30))")
sandbox+=(${extra[@]+"${extra[@]}"})

form=()
[[ -n ${MODEL:-} && -z ${MIN_DICE:-} ]] && form=(--form)

gpu=()
if [[ ${GPU:-auto} == auto ]] && nvidia-smi --list-gpus > /dev/null 2>&1; then
    case ${engine[*]} in
        *podman*) gpu=(--device nvidia.com/gpu=all) ;;
        *) gpu=(--gpus all) ;;
    esac
fi

year_of() { # year_of CASE
    if [[ -f $1/expected/t-stage.json ]]; then echo 2026; else echo 2025; fi
}

task_of() { # task_of CASE: as its own settings say, else as asked for; 2026 has no tasks
    local own=""
    [[ $(year_of "$1") == 2026 ]] && own=both
    [[ -f $1/settings ]] && own=$(sed -n 's/.*--task \([^ ]*\).*/\1/p' "$1/settings")
    echo "${own:-$task}"
}

deadline_of() { # deadline_of CASE: the words that end a run as the platform does: SIGTERM, SIGKILL
    command -v timeout > /dev/null || return 0
    local seconds=900
    [[ $(task_of "$1") == 1 ]] && seconds=600
    [[ $(year_of "$1") == 2026 ]] && seconds=1500
    echo "timeout --foreground --kill-after=5 $seconds"
}

if ! user=$("${engine[@]}" image inspect --format '{{.Config.User}}' "$image"); then
    echo "test.sh: no image $image; build it with ./build.sh" >&2
    exit 1
fi
if [[ -z $user || $user == root* || $user == 0 || $user == 0:* ]]; then
    echo "test.sh: $image runs as root (USER is '${user}'); the platform refuses that" >&2
    exit 1
fi

setting_of() { # setting_of NAME DEFAULT: an environment variable of the image
    local found
    found=$("${engine[@]}" image inspect --format '{{range .Config.Env}}{{println .}}{{end}}' "$image" \
        | sed -n "s/^$1=//p")
    echo "${found:-$2}"
}
task=${HMVNET_TASK:-$(setting_of HMVNET_TASK both)}
only=$(setting_of HMVNET_INTERFACE auto)

# Copies that the container's user can read, whatever the umask of this checkout.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/hmvnet-test.XXXXXX")
container=$(basename "$scratch")
clean_up() {
    # A container outlives its client where the deadline or Ctrl-C killed that.
    "${engine[@]}" rm --force "$container" > /dev/null 2>&1 || true
    # The outputs belong to the container's user, so it is the one that can delete them.
    if compgen -G "$scratch/*/output/*" > /dev/null; then
        "${engine[@]}" run "${sandbox[@]}" --volume "$scratch:/scratch" --entrypoint sh "$image" \
            -c 'rm -rf /scratch/*/output/*' || true
    fi
    rm -rf "$scratch"
}
trap clean_up EXIT
cp "$root/test/compare_outputs.py" "$scratch/"

model=()
if [[ -n ${MODEL:-} ]]; then
    cp -RL "$MODEL" "$scratch/model"
    model=(--volume "$scratch/model:/opt/ml/model:ro")
fi
chmod -R a+rX "$scratch"

run_case() { # run_case FOLDER: the platform's run; outputs into FOLDER/output
    local settings=() deadline=() more=()
    read -r -a deadline <<< "$(deadline_of "$1")"
    [[ -n ${ON_ERROR:-} ]] && more=(--env "HMVNET_ON_ERROR=$ON_ERROR")
    if [[ -f $1/settings ]]; then
        read -r -d '' -a settings < "$1/settings" || true # it stops at the end of the file
    fi
    ${deadline[@]+"${deadline[@]}"} "${engine[@]}" run "${sandbox[@]}" ${gpu[@]+"${gpu[@]}"} \
        --name "$container" --env "HMVNET_TASK=$(task_of "$1")" ${more[@]+"${more[@]}"} ${model[@]+"${model[@]}"} \
        --volume "$1/input:/input:ro" --volume "$1/output:/output" "$image" \
        ${settings[@]+"${settings[@]}"}
}

compare_case() { # compare_case FOLDER: inside the image, so that the host needs no Python
    local truth=()
    if [[ -f $1/truth.mha ]]; then
        truth=(--truth /case/truth.mha --least-dice "$(cat "$1/least_dice")")
    fi
    "${engine[@]}" run "${sandbox[@]}" --volume "$1:/case:ro" \
        --volume "$scratch/compare_outputs.py:/compare_outputs.py:ro" --entrypoint python3 "$image" \
        /compare_outputs.py /case/expected /case/output --task "$(task_of "$1")" \
        --min-dice "${MIN_DICE:-0.99}" ${form[@]+"${form[@]}"} ${truth[@]+"${truth[@]}"}
}

names=("$@")
for name in ${names[@]+"${names[@]}"}; do
    if [[ ! -d $root/test/cases/$name/expected ]]; then
        echo "test.sh: $root/test/cases/$name/expected: no such folder" >&2
        exit 1
    fi
done
if [[ $# == 0 ]]; then
    for folder in "$root"/test/cases/*/input; do
        [[ -d $folder ]] && names+=("$(basename "$(dirname "$folder")")")
    done
fi
if [[ ${#names[@]} == 0 ]]; then
    echo "test.sh: no case in $root/test/cases" >&2
    exit 1
fi

failed=()
number=0 left_out=0
for name in "${names[@]}"; do
    number=$((number + 1))
    echo "== case $number of ${#names[@]}: $name (task $task, image $image, user $user)"
    if [[ $only != auto && $only != $(year_of "$root/test/cases/$name") ]]; then
        echo "-- left out: the image is built for $only"
        left_out=$((left_out + 1))
        continue
    fi
    folder=$scratch/$name
    mkdir "$folder"
    cp -RL "$root/test/cases/$name/." "$folder/"
    chmod -R a+rX "$folder"
    mkdir "$folder/output"
    chmod 777 "$folder/output"
    started=$SECONDS
    if run_case "$folder"; then
        echo "-- ran in $((SECONDS - started)) s; compared with test/cases/$name/expected:"
        compare_case "$folder" || failed+=("$name")
    else
        # In an if's else, $? is the exit code of its condition.
        echo "-- container ended with exit code $? after $((SECONDS - started)) s"
        failed+=("$name")
        "${engine[@]}" rm --force "$container" > /dev/null 2>&1 || true
    fi
done

if [[ ${#failed[@]} != 0 ]]; then
    echo "test.sh: ${#failed[@]} of ${#names[@]} cases failed: ${failed[*]}" >&2
    exit 1
fi
if [[ $left_out == "${#names[@]}" ]]; then
    echo "test.sh: no case of $only among these" >&2
    exit 1
fi
echo "test.sh: all $((${#names[@]} - left_out)) cases passed"
